"""Uploads a request's body to a server, as its producer writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_vllm.http.client.interfaces import IRelayedBody
from twisted_vllm.http.headers import write_last_chunk


def hold(body: object) -> None:
    """Pause a body that will be sent later, if it can be paused."""
    if IRelayedBody.providedBy(body):
        body.hold()


@implementer(IConsumer)
class BodyUpload:
    """Streams one body; a body of unknown length is sent in chunks.

    Attributes:
        done: whether the whole body was written.
    """

    def __init__(
        self,
        body: IBodyProducer,
        transport: Any,
        write: Callable[[bytes], None],
        on_piece: Callable[[], None],
        on_failed: Callable[[Failure], None],
    ) -> None:
        """Create the upload.

        Args:
            body: the body.
            transport: the connection's transport, which pauses and resumes the body.
            write: writes to the transport.
            on_piece: called after each piece.
            on_failed: called when the body ends early.
        """
        self.done = False
        self._body: IBodyProducer | None = body
        self._chunked = body.length is UNKNOWN_LENGTH
        self._transport = transport
        self._write = write
        self._on_piece = on_piece
        self._on_failed = on_failed

    def start(self) -> None:
        """Start to send."""
        body = self._body
        if body is not None:
            self._transport.registerProducer(body, True)
            body.startProducing(self).addCallbacks(self._end, self._fail)

    def stop(self, lost: bool) -> None:
        """Stop the body: the server does not read the rest.

        Args:
            lost: whether the connection is lost.
        """
        body, self._body = self._body, None
        if body is not None:
            if not lost:
                self._transport.unregisterProducer()
            body.stopProducing()

    def _end(self, _: object) -> None:
        body, self._body = self._body, None
        if body is None:
            return
        self.done = True
        self._transport.unregisterProducer()
        if self._chunked:
            self._write(write_last_chunk(body.trailers if IRelayedBody.providedBy(body) else None))

    def _fail(self, failure: Failure) -> None:
        if self._body is not None:
            self._on_failed(failure)

    # IConsumer, for the body

    def write(self, data: bytes) -> None:
        """Send a piece."""
        if data and self._body is not None:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            self._on_piece()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Do nothing: the transport has the body as its producer already."""

    def unregisterProducer(self) -> None:
        """Do nothing, likewise."""
