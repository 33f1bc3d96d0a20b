"""All users talk at once, each one turn after the other, and wait for the streamed answers."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import attrs
import msgspec

from benchmarks.client import Target
from benchmarks.routing.scenarios import Scenario, Talk

_PATIENCE_SECONDS = 120.0
_EVENT = b"data: {"


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_read_chunk = msgspec.json.Decoder(_Chunk).decode


@attrs.frozen
class Turn:
    """One request.

    Attributes:
        failed: whether its answer did not come whole, or was no 200.
        first: seconds to the first event; None if none came.
    """

    failed: bool
    first: float | None


@attrs.frozen
class Load:
    """How a run is done.

    Attributes:
        model: the model to ask for.
        users: how many talk.
        turns: how many messages each user sends.
        tokens: the length of an answer.
        seed: of what they say.
    """

    model: str
    users: int
    turns: int
    tokens: int
    seed: int


def talk(target: Target, scenario: Scenario, load: Load, progress: Callable[[int], None]) -> list[Turn]:
    """Let all users talk, and return their turns.

    Args:
        target: where the requests go.
        scenario: which groups there are.
        load: how many users, and what they ask for.
        progress: called after each turn, with the number of turns that are over, from one thread at a time.
    """
    over = 0
    lock = threading.Lock()

    def one(user: int) -> list[Turn]:
        nonlocal over
        conversation = Talk(load.seed, user, scenario.group_of(user))
        turns = []
        for number in range(load.turns):
            if number:
                time.sleep(scenario.pause)
            conversation.ask()
            turn, text = _take_turn(target, load, user, conversation)
            conversation.hear(text)
            turns.append(turn)
            with lock:
                over += 1
                progress(over)
        return turns

    with ThreadPoolExecutor(load.users) as threads:
        return [turn for turns in threads.map(one, range(load.users)) for turn in turns]


def _take_turn(target: Target, load: Load, user: int, conversation: Talk) -> tuple[Turn, str]:
    body = msgspec.json.encode(
        {
            "model": load.model,
            "messages": conversation.messages,
            "max_tokens": load.tokens,
            "temperature": 0,
            "stream": True,
        }
    )
    headers = {"Content-Type": "application/json", "X-Session-Id": f"user-{user}"}
    if target.key is not None:
        headers["Authorization"] = f"Bearer {target.key}"
    connection = http.client.HTTPConnection(target.host, target.port, timeout=_PATIENCE_SECONDS)
    began, first, text, ended = time.monotonic(), None, [], False
    try:
        connection.request("POST", f"{target.base}/v1/chat/completions", body, headers)
        response = connection.getresponse()
        for line in response if response.status == 200 else ():
            if line.startswith(_EVENT):
                if first is None:
                    first = time.monotonic() - began
                text += [choice.delta.content or "" for choice in _read_chunk(line[6:]).choices]
            ended = ended or line.startswith(b"data: [DONE]")
    except (OSError, http.client.HTTPException, msgspec.MsgspecError):
        ended = False
    finally:
        connection.close()
    return Turn(not ended or first is None, first), "".join(text)


def percentile(values: list[float], percent: float) -> float | None:
    """Return the value below which so many percent of the others lie; None without any."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] if ordered else None
