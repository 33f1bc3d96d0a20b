"""A body in memory is sent in bounded steps, as fast as the server reads it, and again where that is safe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from twisted.internet.error import ConnectionDone
from zope.interface.verify import verifyObject

from tests.http.upstream_harness import OK, Lab
from tests.turns import TurnClock
from twisted_vllm.errors import UpstreamUnreachable
from twisted_vllm.http.client.held_body_producer import STEP, HeldBodyProducer
from twisted_vllm.http.client.interfaces import IRepeatableBody
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.net.bounded_turns import turn_cooperator

PIECE = b"0123456789abcdef" * 4_096
HEADERS = [(b"Host", b"vllm"), (b"Content-Length", b"1048576")]


class Pieces:
    """A body of equal pieces."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number * len(PIECE)

    def __iter__(self) -> Iterator[bytes]:
        return iter([PIECE] * self.number)


class HeldLab(Lab):
    """A lab whose requests have a held body of 1 MiB.

    Attributes:
        turns: the reactor of what is sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns = TurnClock()

    def producer(self) -> Any:
        return HeldBodyProducer(Pieces(16), turn_cooperator(self.turns).cooperate)

    def turn(self) -> None:
        super().turn()
        self.turns.turn()

    def upload(self, **options: Any) -> Any:
        return self.ask(b"POST", headers=HEADERS, body=self.producer(), **options)


def body_of(received: bytes) -> bytes:
    return received.partition(b"\r\n\r\n")[2]


def test_it_provides_its_interface() -> None:
    assert verifyObject(IRepeatableBody, HeldLab().producer())


def test_each_turn_of_the_reactor_sends_at_most_one_step() -> None:
    lab = HeldLab()
    lab.upload()
    end = lab.accept()
    sizes = [len(body_of(end.received))]
    for _ in range(6):
        lab.turn()
        end.transport.drain()
        sizes.append(len(body_of(end.received)))
    assert {after - before for before, after in itertools.pairwise(sizes)} <= {0, STEP}
    assert body_of(end.received) == PIECE * 16


def test_a_server_that_does_not_read_pauses_it() -> None:
    lab = HeldLab()
    producer = lab.producer()
    lab.ask(b"POST", headers=HEADERS, body=producer)
    end = lab.accept()
    producer.pauseProducing()
    producer.pauseProducing()
    before = len(end.received)
    lab.turn()
    assert len(end.received) == before
    producer.resumeProducing()
    for _ in range(6):
        lab.turn()
        end.transport.drain()
    assert body_of(end.received) == PIECE * 16


def test_it_is_sent_again_from_its_beginning_if_a_reused_connection_was_dead() -> None:
    lab = HeldLab()
    first, end = lab.asked()
    end.send(OK)
    assert first.body == b"ok"
    end.clear_writes()
    # its route says that this is harmless
    asked = lab.upload(again=lambda: RawHeaders.from_pairs(HEADERS))
    lab.turn()
    assert end.received
    end.transport.lose(ConnectionDone())
    again = lab.accept()
    for _ in range(6):
        lab.turn()
        again.transport.drain()
    assert body_of(again.received) == PIECE * 16
    again.send(OK)
    assert asked.body == b"ok"


def test_a_fresh_connection_that_dies_is_told_and_nothing_more_is_written() -> None:
    lab = HeldLab()
    asked = lab.upload()
    end = lab.accept()
    lab.turn()
    end.transport.lose(ConnectionDone())
    assert isinstance(asked.error, UpstreamUnreachable)
    assert lab.turns.getDelayedCalls() == []
    assert lab.attempts == 1


def test_a_response_before_the_end_of_the_body_stops_it() -> None:
    lab = HeldLab()
    asked = lab.upload()
    end = lab.accept()
    end.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
    assert asked.response.code == 413
    before = len(end.received)
    lab.turn()
    assert len(end.received) == before
