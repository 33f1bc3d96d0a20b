"""Sends a body that is held in memory, in bounded steps and again if need be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import CooperativeTask
from zope.interface import implementer

from twisted_vllm.http.client.interfaces import IRepeatableBody
from twisted_vllm.http.net.bounded_turns import Cooperate

#: bytes that are written in one step: what the socket's buffer may take at once
STEP = 262_144


class HeldBytes(Protocol):
    """The bytes of a body. ``len()`` is their number."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]:
        """Yield them in pieces; each call begins anew."""


@implementer(IRepeatableBody)
class HeldBodyProducer:
    """Writes a held body to a connection.

    Attributes:
        length: its size in bytes.
    """

    def __init__(self, body: HeldBytes, cooperate: Cooperate) -> None:
        """Make the producer.

        Args:
            body: the body.
            cooperate: runs the steps.
        """
        self.length = len(body)
        self._body = body
        self._cooperate = cooperate
        self._task: CooperativeTask[Any] | None = None
        self._paused = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the whole body to `consumer`, from its beginning; the Deferred fires at its end."""
        done: Deferred[None] = Deferred()
        self._paused = False
        self._task = self._cooperate(self._write(consumer, done))
        return done

    def _write(self, consumer: IConsumer, done: Deferred[None]) -> Iterator[None]:
        written = 0
        for piece in self._body:
            consumer.write(piece)
            written += len(piece)
            if written >= STEP or self._paused:
                written = 0
                yield
        self._task = None
        done.callback(None)

    def pauseProducing(self) -> None:
        """Stop writing: the connection's buffer is full."""
        if self._task is not None and not self._paused:
            self._paused = True
            self._task.pause()

    def resumeProducing(self) -> None:
        """Resume writing."""
        if self._task is not None and self._paused:
            self._paused = False
            self._task.resume()

    def stopProducing(self) -> None:
        """Stop: the server has responded or disconnected. The body can be sent again."""
        task, self._task = self._task, None
        if task is not None:
            task.stop()
