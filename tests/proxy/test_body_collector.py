"""A body is collected while the reactor serves others, and is as bounded in memory as it is in time."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.proxy.gateway_fakes import FakeRequest
from tests.turns import TurnClock
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.errors import BodyTooComplex, BodyTooLarge
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.http.server.held_bodies import SMALL_BODY
from twisted_vllm.proxy.body_collector import (
    LONG_BODY,
    MAX_UNREAD,
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
            cooperate=turn_cooperator(self.clock).cooperate,
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
    assert b"".join(collecting.body.rope()) == large()
    assert [member.key for member in collecting.body.checked_members()] == ["model", "x", "prompt"]
    assert collecting.request.work is None


def test_a_body_that_is_not_json_is_held_unread() -> None:
    collecting = Collecting(is_json=False)
    collecting.send(bytes(200_000), turns=False)
    assert b"".join(collecting.body.rope()) == bytes(200_000)


def test_a_client_waits_while_much_is_unread() -> None:
    collecting = Collecting()
    collecting.send(large(MAX_UNREAD + PIECE), last=False, turns=False)
    assert collecting.request.events[-1] == "pause body"
    collecting.clock.advance(0)
    assert collecting.request.events[-1] == "resume body"
    collecting.send(b" ")
    assert len(collecting.body) == len(large(MAX_UNREAD + PIECE)) + 1


def test_what_is_wrong_is_told_when_the_body_is_complete() -> None:
    collecting = Collecting()
    collecting.send(b'{"a":' + b"[" * 100_000)
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
    collecting.send(large(), last=False, turns=False)
    collecting.request.work.cancel()
    assert collecting.clock.getDelayedCalls() == []
    assert collecting.found == []


def test_bodies_of_several_clients_take_turns() -> None:
    clock = TurnClock()
    cooperator = turn_cooperator(clock)
    steps: list[str] = []

    def work(name: str) -> Any:
        for _ in range(3):
            steps.append(name)
            yield

    cooperator.cooperate(work("a"))
    cooperator.cooperate(work("b"))
    while clock.getDelayedCalls():
        before = len(steps)
        clock.turn()
        assert len(steps) <= before + 1
    assert steps == ["a", "b", "a", "b", "a", "b"]


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
    assert takes_long(b"[" + b"0," * (LONG_BODY // 2) + b"0]")
    assert takes_long(b"[" + b"{}" * (LONG_BODY // 2) + b"0]")
