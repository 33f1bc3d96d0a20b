from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from tests.end_to_end.end_to_end_harness import eventually
from tests.workers.connected import Connected, connected
from twisted_vllm.workers.link import Link
from twisted_vllm.workers.messages import FrameError, FrameReader
from twisted_vllm.workers.siblings import ALONE
from twisted_vllm.workers.topics import NoAnswer


class Word(msgspec.Struct, array_like=True, frozen=True):
    text: str


@pytest.fixture
def processes(reactor: Any) -> Iterator[Connected]:
    found = connected(reactor)
    yield found
    found.close()


def listen(link: Link, topic: str = "news") -> list[tuple[str, int]]:
    heard: list[tuple[str, int]] = []
    link.on(topic, Word, lambda word, sender: heard.append((word.text, sender)))
    return heard


async def test_a_process_is_known_to_all_others_once_it_is_ready(processes: Connected) -> None:
    first = await processes.ready(10, 0)
    second = await processes.ready(11, 1)
    assert (dict(first.others), dict(second.others)) == ({11: 1}, {10: 0})
    assert first.housekeeps and not first.serves
    assert second.serves and not second.housekeeps


async def test_a_message_is_shared_with_every_other_process(processes: Connected, reactor: Any) -> None:
    links = [await processes.ready(number, number) for number in range(3)]
    heard = [listen(link) for link in links]
    for text in ("one", "two"):
        links[1].share("news", Word(text))
    await eventually(reactor, lambda: len(heard[0]) == len(heard[2]) == 2)
    assert heard == [[("one", 1), ("two", 1)], [], [("one", 1), ("two", 1)]]


async def test_a_message_to_one_process_reaches_no_other(processes: Connected, reactor: Any) -> None:
    links = [await processes.ready(number, number) for number in range(3)]
    heard = [listen(link) for link in links]
    links[0].send(2, "news", Word("hello"))
    await eventually(reactor, lambda: bool(heard[2]))
    assert heard == [[], [], [("hello", 0)]]


async def test_the_supervisor_answers_questions(processes: Connected, reactor: Any) -> None:
    link = await processes.ready(5, 1)
    later: Deferred[Word] = Deferred()
    processes.hub.answers("quick", Word, lambda word, asker: Word(f"{word.text} to {asker}"))
    processes.hub.answers("slow", Word, lambda word, asker: later)
    assert await link.ask("quick", Word("yes"), Word) == Word("yes to 5")
    waiting = link.ask("slow", Word(""), Word)
    reactor.callLater(0.01, later.callback, Word("at last"))
    assert await waiting == Word("at last")


async def test_all_other_processes_answer_a_question(processes: Connected) -> None:
    links = [await processes.ready(number, number) for number in range(3)]

    def answer(link: Link) -> None:
        link.answers("who", Word, lambda word, asker: Word(f"{link.number} for {asker}"))

    for link in links:
        answer(link)
    assert await links[0].ask_others("who", Word(""), Word) == {1: Word("1 for 0"), 2: Word("2 for 0")}
    assert await processes.hub.ask_all("who", Word(""), Word) == {n: Word(f"{n} for -1") for n in range(3)}


async def test_who_does_not_answer_in_time_is_left_out(processes: Connected) -> None:
    links = [await processes.ready(number, number) for number in range(3)]
    links[1].answers("who", Word, lambda word, asker: Word("here"))
    links[2].answers("who", Word, lambda word, asker: Deferred())
    assert await links[0].ask_others("who", Word(""), Word, timeout=0.05) == {1: Word("here")}
    with pytest.raises(NoAnswer, match=r"within 0\.05 s"):
        await links[0].ask_one(2, "who", Word(""), Word, timeout=0.05)


async def test_a_question_that_cannot_be_answered_says_why(processes: Connected) -> None:
    link = await processes.ready(1, 1)

    def fails(word: Word, asker: int) -> Word:
        raise NoAnswer("broken")

    processes.hub.answers("broken", Word, fails)
    with pytest.raises(NoAnswer, match="it could not be answered"):
        await link.ask("broken", Word(""), Word)
    with pytest.raises(NoAnswer, match="nobody answers questions about nothing"):
        await link.ask("nothing", Word(""), Word)
    with pytest.raises(NoAnswer, match="the process has ended"):
        await link.ask_one(99, "broken", Word(""), Word)


async def test_a_process_that_ends_leaves_and_fails_what_was_asked_of_it(processes: Connected, reactor: Any) -> None:
    first, second = await processes.ready(1, 1), await processes.ready(2, 2)
    left: list[int] = []
    first.on_left(left.append)
    processes.hub.on_left(left.append)
    second.answers("who", Word, lambda word, asker: Deferred())
    waiting = first.ask_one(2, "who", Word(""), Word)
    second.close()
    with pytest.raises(NoAnswer, match="the process has ended"):
        await waiting
    assert (left, dict(first.others), dict(processes.hub.ready)) == ([2, 2], {}, {1: 1})


async def test_a_process_hears_that_its_supervisor_has_ended(processes: Connected, reactor: Any) -> None:
    link = await processes.ready(1, 1)
    reasons: list[str] = []
    link.on_supervisor_gone = reasons.append
    processes.hub.answers("slow", Word, lambda word, asker: Deferred())
    waiting = link.ask("slow", Word(""), Word)
    processes.hub.close(1)
    with pytest.raises(NoAnswer, match="the supervisor has ended"):
        await waiting
    assert reasons == ["it has ended"]
    with pytest.raises(NoAnswer):
        await link.ask("slow", Word(""), Word)


async def test_what_is_sent_before_the_connection_waits_for_it(processes: Connected, reactor: Any) -> None:
    heard: list[str] = []
    processes.hub.on("early", Word, lambda word, sender: heard.append(word.text))
    link = Link(reactor, processes._coalescer, 7, 1)
    link.tell("early", Word("waited"))
    assert not heard
    started = processes.start(8, 2)
    started.tell("early", Word("at once"))
    await eventually(reactor, lambda: heard == ["at once"])


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 1000])
async def test_large_messages_come_whole(processes: Connected, reactor: Any, pieces: int) -> None:
    first, second = await processes.ready(1, 1), await processes.ready(2, 2)
    heard = listen(second)
    texts = [str(number) * (1_000_000 // pieces) for number in range(pieces)]
    for text in texts:
        first.share("news", Word(text))
    await eventually(reactor, lambda: len(heard) == pieces)
    assert [text for text, _ in heard] == texts


def test_what_is_no_frame_is_refused() -> None:
    for data in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"GET / HTTP/1.1\r\n\r\n"):
        with pytest.raises(FrameError):
            list(FrameReader().feed(data))


async def test_a_single_process_has_nobody_to_talk_to() -> None:
    ALONE.on("news", Word, lambda word, sender: None)
    ALONE.on("news", Word, lambda word, sender: None)
    ALONE.share("news", Word(""))
    assert await ALONE.ask_others("news", Word(""), Word) == {}
    with pytest.raises(NoAnswer):
        await ALONE.ask("news", Word(""), Word)
