"""What one request is charged with: it looks on at the response, and says at the end what was used."""

from __future__ import annotations

from typing import Any

from twisted_vllm.gateway.admission import Admitted
from twisted_vllm.ledger.prices import Prices
from twisted_vllm.ledger.readers import INJECTABLE, UsageReader, reader_for
from twisted_vllm.ledger.stream_filter import Fingerprint, StreamFilter
from twisted_vllm.ledger.values import NOTHING_USED, Usage
from twisted_vllm.limits.reservation import Reservation
from twisted_vllm.wire.headers import ResponseHead

#: media types of which a response's head says what was used, if anything does
_BYTES = b"application/octet-stream"


class Charge:
    """One request that is paid for.

    Attributes:
        route: the path that the server sees, without its query, as text.
        prices: what its model costs.
        end_user: for whom the caller says that it asks.
        prompt_tokens: an estimate of the prompt's.
        answers: how many answers it asks for.
        asked_usage: whether the gateway asked for the usage of the stream, which the client did not.
        reservation: what was reserved, where anything is limited.
        status: the status that the server answered with; 0 before.
    """

    reservation: Reservation | None = None
    fingerprint: Fingerprint | None = None
    status = 0
    _reader: UsageReader | None = None
    _filter: StreamFilter | None = None

    def __init__(
        self,
        route: str,
        prices: Prices,
        end_user: str | None,
        prompt_tokens: int,
        admitted: Admitted,
    ) -> None:
        self.route = route
        self.prices = prices
        self.end_user = end_user
        self.prompt_tokens = prompt_tokens
        # not what was admitted: that holds the request's body
        self.answers = admitted.facts.answers
        self.asked_usage = admitted.asked_usage

    @property
    def is_stream(self) -> bool:
        """Whether the response is a stream of events."""
        reader: Any = self._filter or self._reader
        return reader is not None and bool(reader.stream)

    def answered(self, head: ResponseHead) -> None:
        """Look at the head of the response, and begin to read its body."""
        self.status = head.status
        kind = head.content_type
        metadata = b""
        if kind == _BYTES:
            metadata = next((value for name, value in head.headers if name.lower() == b"metadata"), b"")
        reader = reader_for(self.route, kind, head.status, content_encoding=head.content_encoding, metadata=metadata)
        if reader is None:
            return
        if self.asked_usage and reader.stream and head.length is None and not head.content_encoding:
            self._filter = StreamFilter(chat=INJECTABLE[self.route], fingerprint=self.fingerprint)
        else:
            self._reader = reader

    def passing(self, data: bytes) -> bytes:
        """Look on at a piece of the response; return what of it goes on."""
        if self._filter is not None:
            return self._filter.feed(data)
        if self._reader is not None:
            self._reader.feed(data)
        return data

    def last(self, data: bytes) -> bytes:
        """Look on at the last piece; return what goes on, with whatever was held back."""
        if self._filter is not None:
            return self._filter.feed(data) + self._filter.finish()
        if self._reader is not None and data:
            self._reader.feed(data)
        return data

    def used(self, outcome: str) -> Usage:
        """Return what the request used, by the server's word, or else by an estimate.

        Args:
            outcome: how it ended, as in its log record.
        """
        reader: StreamFilter | UsageReader | None = self._filter or self._reader
        if reader is not None:
            return reader.usage() or reader.estimate(self.prompt_tokens, self.answers)
        if not self.status and outcome in ("client_disconnected", "revoked") and self.prompt_tokens:
            # it ended while the server was at it
            return Usage(prompt_tokens=self.prompt_tokens, total_tokens=self.prompt_tokens, estimated=True)
        return NOTHING_USED
