"""Asks a server for a stored response, and reads its status and its usage, whatever its size."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from twisted_vllm.api_routes import UsageFormat
from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.upstreams.own_requests import get_json
from twisted_vllm.usage.readers.document import Document, Shape
from twisted_vllm.usage.readers.registry import READERS, JsonFormat
from twisted_vllm.usage.records import Usage

#: seconds to wait for an answer
TIMEOUT = 30.0

_SHAPE = Shape((b"status", b"usage"))


class _Status(msgspec.Struct, gc=False):
    status: str | None = None


_decode_status = msgspec.json.Decoder(_Status).decode
_READERS = READERS[UsageFormat.RESPONSES]
_FORMAT = None if _READERS is None else _READERS.reading(b"application/json", b"")


class StoredAnswer(msgspec.Struct, frozen=True, gc=False):
    """A server's answer to a request for a stored response.

    Attributes:
        code: the HTTP status.
        status: the response's ``status``; empty if the answer names none.
        usage: the reported usage; None if there is none.
        size: the size of the body in bytes.
    """

    code: int
    status: str
    usage: Usage | None
    size: int


def ask_for(client: PassThroughClient, server: Server, response_id: str, clock: Any) -> Deferred[StoredAnswer]:
    """Ask a server for a response.

    Args:
        client: sends the request.
        server: the server; its own key is sent.
        response_id: the id, which needs no escapes in a URL.
        clock: a provider of IReactorTime.

    Returns:
        The answer. It fails if there is none within `TIMEOUT` seconds, and as `IUpstreamAgent.request`.
    """
    asked: Deferred[Any] = get_json(client, server, b"/v1/responses/" + response_id.encode("ascii"))
    return asked.addCallback(_read).addTimeout(TIMEOUT, clock)


class _Body(Protocol):
    """Collects what is needed of an answer's body."""

    transport: Any = None

    def __init__(self, code: int) -> None:
        self.done: Deferred[StoredAnswer] = Deferred(self._cancel)
        self._code = code
        self._document = Document(_SHAPE)
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        self._document.feed(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone):
            text = self._document.read()
            self.done.callback(StoredAnswer(self._code, _status_of(text), _usage_of(text), self._size))
        else:
            self.done.errback(reason)

    def _cancel(self, _: object) -> None:
        if self.transport is not None:
            self.transport.stopProducing()


def _read(response: UpstreamResponse) -> Deferred[StoredAnswer]:
    body = _Body(response.code)
    response.deliverBody(body)
    return body.done


def _status_of(text: bytes) -> str:
    try:
        return _decode_status(text).status or ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _usage_of(text: bytes) -> Usage | None:
    return _FORMAT.usage(text) if isinstance(_FORMAT, JsonFormat) else None
