"""A body is collected while the reactor serves others, and is as bounded in memory as it is in time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.proxy.gateway_fakes import FakeRequest
from tests.turns import TurnClock
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.errors import BodyTooComplex, BodyTooLarge
from twisted_vllm.http.net.bounded_turns import OWNERS, Job, Jobs, turn_cooperator
from twisted_vllm.http.server.held_bodies import SMALL_BODY
from twisted_vllm.proxy.body_collector import (
    LONG_BODY,
    LONG_MARKS,
    QUICK_BODY,
    QUICK_ESCAPES,
    QUICK_MARKS,
    BodyCollector,
    takes_long,
)

PIECE = 65_536


class Collecting:
    """A body that is collected, piece by piece.

    Attributes:
        found: what was collected.
    """

    def __init__(self, limit: int = 1 << 26, *, is_json: bool = True, length: int | None = None) -> None:
        self.clock = Clock()
        request: Any = FakeRequest(body_complete=False, body_length=length)
        self.found: list[bytes | HeldBody] = []
        self.request = request
        BodyCollector(
            request,
            limit,
            self.found.append,
            work=partial(Jobs(turn_cooperator(self.clock).cooperate).run, "key"),
            is_json=is_json,
            policy=None,
        ).start()

    def send(self, body: bytes, *, last: bool = True, turns: bool = True) -> None:
        pieces = [body[at : at + PIECE] for at in range(0, len(body), PIECE)] or [b""]
        for number, piece in enumerate(pieces, 1):
            self.request.sink(piece, last and number == len(pieces))
            if turns:
                self.clock.advance(0)

    @property
    def body(self) -> HeldBody:
        [body] = self.found
        assert isinstance(body, HeldBody)
        return body


def large(size: int = 1_000_000) -> bytes:
    """A body that is not read at once: it has too many commas."""
    return b'{"model":"m","x":[' + b"0," * QUICK_MARKS + b'0],"prompt":"' + b"x" * size + b'"}'


def test_a_small_body_is_given_as_bytes_when_its_last_piece_arrives() -> None:
    collecting = Collecting()
    collecting.send(b'{"model":', last=False, turns=False)
    assert collecting.found == []
    collecting.send(b'"m"}', turns=False)
    assert collecting.found == [b'{"model":"m"}']
    assert collecting.request.work is None


def test_a_large_body_is_held_and_has_been_read_when_it_is_given() -> None:
    collecting = Collecting()
    collecting.send(large())
    collecting.clock.pump([0] * 50)
    assert b"".join(collecting.body.rope()) == large()
    assert [member.key for member in collecting.body.checked_members()] == ["model", "x", "prompt"]
    assert collecting.request.work is None


def test_a_body_that_is_not_json_is_held_unread() -> None:
    collecting = Collecting(is_json=False)
    collecting.send(bytes(200_000), turns=False)
    assert b"".join(collecting.body.rope()) == bytes(200_000)


def test_nothing_is_built_of_a_body_that_is_not_complete() -> None:
    collecting = Collecting()
    collecting.send(large(), last=False)
    assert collecting.clock.getDelayedCalls() == []
    collecting.send(b" ")
    collecting.clock.pump([0] * 200)
    assert len(collecting.body) == len(large()) + 1


def test_what_is_wrong_is_told_when_the_body_is_complete() -> None:
    collecting = Collecting()
    collecting.send(b'{"a":' + b"[" * 100_000)
    collecting.clock.pump([0] * 10)
    with pytest.raises(BodyTooComplex, match="at most 200 levels"):
        collecting.body.checked_members()


@pytest.mark.parametrize("length", [None, 101])
def test_a_body_over_the_limit_is_refused(length: int | None) -> None:
    collecting = Collecting(100, length=length)
    if length is None:
        collecting.send(bytes(101))
    assert isinstance(collecting.request.answered, BodyTooLarge)
    assert collecting.found == []
    assert collecting.request.work is None
    assert collecting.clock.getDelayedCalls() == []


def test_nothing_runs_on_when_the_client_has_left() -> None:
    collecting = Collecting()
    collecting.send(large(), turns=False)
    collecting.request.work.cancel()
    assert collecting.clock.getDelayedCalls() == []
    assert collecting.found == []


class Working:
    """Jobs of several owners, of three steps each.

    Attributes:
        steps: the names of the jobs whose steps were done.
    """

    def __init__(self) -> None:
        self.clock = TurnClock()
        self.jobs = Jobs(turn_cooperator(self.clock).cooperate)
        self.steps: list[str] = []

    def begin(self, owner: str, name: str) -> Job:
        def work() -> Iterator[None]:
            for _ in range(3):
                self.steps.append(name)
                yield

        return self.jobs.run(owner, work())

    def finish(self) -> list[str]:
        while self.clock.getDelayedCalls():
            before = len(self.steps)
            self.clock.turn()
            assert len(self.steps) <= before + 1
        return self.steps


def test_bodies_of_several_keys_take_turns() -> None:
    working = Working()
    working.begin("a", "a")
    working.begin("b", "b")
    assert working.finish() == ["a", "b", "a", "b", "a", "b"]


def test_many_bodies_of_one_key_delay_another_key_s_as_little_as_one() -> None:
    working = Working()
    for number in range(100):
        working.begin("many", f"many{number}")
    working.begin("one", "one")
    steps = working.finish()
    assert len(steps) == 303
    assert steps.index("one") <= 2
    assert [name for name in steps if name != "one"] == [f"many{number}" for number in range(100) for _ in range(3)]


def test_few_bodies_are_being_read_at_the_same_time_and_every_key_has_its_turn() -> None:
    working = Working()
    for number in range(3):
        for owner in "abcdefgh":
            working.begin(owner, f"{owner}{number}")
    steps = working.finish()
    for at in range(len(steps)):
        assert len(set(steps[:at]) & set(steps[at:])) <= OWNERS
    first = list(dict.fromkeys(steps))
    assert {name[0] for name in first[:8]} == set("abcdefgh")


def test_a_body_that_is_given_up_lets_the_next_one_in_whether_it_waited_or_not() -> None:
    working = Working()
    begun, waiting, last = (working.begin("a", name) for name in ("begun", "waiting", "last"))
    working.clock.turn()
    waiting.stop()
    begun.stop()
    begun.stop()
    assert working.finish() == ["begun", "last", "last", "last"]
    last.stop()


def test_a_body_that_fails_lets_the_next_one_in() -> None:
    working = Working()

    def fail() -> Iterator[None]:
        yield
        raise ValueError

    working.jobs.run("a", fail())
    working.begin("a", "next")
    assert working.finish() == ["next"] * 3


PLAIN = b'{"model":"m","prompt":"%b"}'


@pytest.mark.parametrize("text", [b"x" * SMALL_BODY, b"\\n" * QUICK_ESCAPES, b"x" * (QUICK_BODY - len(PLAIN))])
def test_a_larger_body_that_costs_little_is_read_at_once_in_a_step_of_its_own(text: bytes) -> None:
    collecting = Collecting()
    body = PLAIN % text
    collecting.send(body, turns=False)
    assert collecting.found == []
    collecting.clock.advance(0)
    assert collecting.found == [body]
    assert collecting.request.work is None


@pytest.mark.parametrize(
    "body",
    [
        PLAIN % (b"x" * QUICK_BODY),
        PLAIN % (b"\\n" * (QUICK_ESCAPES + 1)),
        *(b'{"x":[%b0],"y":"%b"}' % (unit * (QUICK_MARKS + 1), b"x" * SMALL_BODY) for unit in (b"0,", b"[],", b"{},")),
    ],
)
def test_a_body_that_may_cost_more_is_read_in_steps(body: bytes) -> None:
    collecting = Collecting()
    collecting.send(body)
    collecting.clock.pump([0] * 200)
    assert b"".join(collecting.body.rope()) == body


def test_a_small_body_takes_long_if_it_has_many_values() -> None:
    assert not takes_long(b"{" * 1_000)
    assert not takes_long(b"x" * SMALL_BODY)
    assert not takes_long(b"[" + b" " * LONG_BODY + b"0," * LONG_MARKS + b"0]")
    assert takes_long(b"[" + b" " * LONG_BODY + b"0," * (LONG_MARKS + 1) + b"0]")
