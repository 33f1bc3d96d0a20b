"""What one request is charged with: it looks on at the response, and says at the end what was used."""

from __future__ import annotations

import msgspec

from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.usage.readers.interfaces import UsageReader
from twisted_vllm.usage.readers.registry import INJECTABLE, JsonKind, json_reader, reading
from twisted_vllm.usage.readers.stream_filter import Fingerprint, StreamFilter
from twisted_vllm.usage.readers.uploaded_audio import UploadedAudio
from twisted_vllm.usage.records import NOTHING_USED, Usage
from twisted_vllm.usage.route_pricing import RoutePricing

#: media types of which a response's head says what was used, if anything does
_BYTES = b"application/octet-stream"


class UsageMeter(msgspec.Struct, eq=False):
    """One request that is paid for.

    Attributes:
        pricing: what it costs, and how its answer is read.
        prompt_tokens: an estimate of the prompt's.
        answers: how many answers it asks for.
        asked_usage: whether the gateway asked for the usage of the stream, which the client did not.
        fingerprint: what the server says of itself where that was asked for.
        status: the status that the server answered with; 0 before.
        is_stream: whether the response is a stream of events.
        kind: of the JSON that the response is, if it is.
        whole: the response, where that came in one piece, as most do.
        reader: looks on at any other response that may say what was used.
        filter: does so, and takes out what was asked for.
        audio: looks on at the form, where it uploads audio.
    """

    pricing: RoutePricing
    prompt_tokens: int
    answers: int
    asked_usage: bool
    fingerprint: Fingerprint | None = None
    status: int = 0
    is_stream: bool = False
    kind: JsonKind | None = None
    whole: bytes = b""
    reader: UsageReader | None = None
    filter: StreamFilter | None = None
    audio: UploadedAudio | None = None

    def answered(self, head: ResponseHead) -> None:
        """Look at the head of the response, and begin to read its body."""
        self.status = status = head.status
        if not 200 <= status < 300:
            return
        pricing = self.pricing
        coding = head.content_encoding
        found = reading(pricing.route, head.content_type, coding) if coding else pricing.readings[head.content_type]
        if found is None:
            return
        if isinstance(found, JsonKind):
            self.kind = found
            return
        metadata = b""
        if head.content_type == _BYTES:
            metadata = next((value for name, value in head.headers if name.lower() == b"metadata"), b"")
        reader = found(metadata)
        self.is_stream = reader.stream
        if self.asked_usage and reader.stream and head.length is None and not head.content_encoding:
            self.filter = StreamFilter(chat=INJECTABLE[pricing.route], fingerprint=self.fingerprint)
        else:
            self.reader = reader

    def passing(self, data: bytes) -> bytes:
        """Look on at a piece of the response; return what of it goes on."""
        if self.filter is not None:
            return self.filter.feed(data)
        if self.reader is None and self.kind is not None:
            self.reader = json_reader(self.kind)
        if self.reader is not None:
            self.reader.feed(data)
        return data

    def last(self, data: bytes) -> bytes:
        """Look on at the last piece; return what goes on, with whatever was held back."""
        if self.filter is not None:
            return self.filter.feed(data) + self.filter.finish()
        if self.reader is None:
            self.whole = data
        elif data:
            self.reader.feed(data)
        return data

    def used(self, outcome: str) -> Usage:
        """Return what the request used, by the server's word, or else by an estimate.

        Args:
            outcome: how it ended, as in its log record.
        """
        kind = self.kind
        if kind is not None and self.reader is None:
            usage = kind.usage(self.whole) or kind.estimate(self.prompt_tokens)
        elif (found := self._used_otherwise(outcome)) is None:
            return NOTHING_USED
        else:
            usage = found
        audio = self.audio
        if audio is not None and not usage.audio_ms and (measured := audio.milliseconds()):
            usage = msgspec.structs.replace(usage, audio_ms=measured, estimated=True)
        return usage

    def _used_otherwise(self, outcome: str) -> Usage | None:
        """Return what a stream used, or an answer in pieces or none; None where a server did nothing for it."""
        reader: StreamFilter | UsageReader | None = self.reader or self.filter
        if reader is not None:
            return reader.usage() or reader.estimate(self.prompt_tokens, self.answers)
        if not self.status and outcome in ("client_disconnected", "revoked") and (self.prompt_tokens or self.audio):
            # it ended while the server was at it
            return Usage(prompt_tokens=self.prompt_tokens, total_tokens=self.prompt_tokens, estimated=True)
        return None
