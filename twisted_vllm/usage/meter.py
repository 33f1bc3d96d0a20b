"""The meter of one request: observes its response and reports its usage at the end."""

from __future__ import annotations

import msgspec

from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.usage.pricing import RoutePricing
from twisted_vllm.usage.readers.counts import response_id_in
from twisted_vllm.usage.readers.registry import IDENTITY, JsonFormat, JsonReader, UsageReader
from twisted_vllm.usage.readers.stream_filter import Fingerprint, StreamFilter
from twisted_vllm.usage.readers.streams import ChunkStream, ResponseStream
from twisted_vllm.usage.readers.uploaded_audio import UploadedAudio
from twisted_vllm.usage.records import NOTHING_USED, Usage

#: the ``Content-Type`` of responses that report usage in their head, if at all
_BYTES = b"application/octet-stream"


class UsageMeter(msgspec.Struct, eq=False):
    """The meter of one request.

    Attributes:
        pricing: the prices of the request, and the reader of its response.
        prompt_tokens: the prompt's tokens, estimated.
        choices: the number of requested choices.
        usage_injected: whether the gateway requested the stream's usage although the client did not.
        max_tokens: the limit of each choice in tokens; None if the client set none.
        min_tokens: the tokens that each choice has at least.
        interval: the least tokens of a stream's event that the client requested.
        response_id: the id of the response, if the gateway chose it; else empty.
        fingerprint: the server's fingerprint, if usage was injected.
        status: the status of the server's response; 0 before it.
        is_stream: whether the response is a stream of events.
        json: the format of the response, if it is JSON.
        whole: the JSON, if it arrived in one piece, as most does.
        reader: reads any other response that may report usage.
        filter: removes from the stream what the client did not request; it feeds `reader`.
        audio: measures the audio that the request uploads.
        size: the declared size of the JSON in bytes; 0 if it is unknown.
        began: when the first piece of a response in pieces came, in Unix seconds; 0 before.
        paused: whether the client read too slowly, so that reading from the server was paused.
    """

    pricing: RoutePricing
    prompt_tokens: int
    choices: int
    usage_injected: bool
    max_tokens: int | None = None
    min_tokens: int = 0
    interval: int = 1
    response_id: str = ""
    fingerprint: Fingerprint | None = None
    status: int = 0
    is_stream: bool = False
    json: JsonFormat | None = None
    whole: bytes = b""
    reader: UsageReader | None = None
    filter: StreamFilter | None = None
    audio: UploadedAudio | None = None
    size: int = 0
    began: float = 0.0
    paused: bool = False

    @property
    def failed(self) -> bool:
        """Whether the server reported an error in a stream that began as a success."""
        return self.is_stream and self.reader is not None and self.reader.failed

    def start(self, head: ResponseHead) -> None:
        """Take the head of the response and choose the reader of its body."""
        self.status = status = head.status
        reading = self.pricing.reading
        if reading is None or not 200 <= status < 300:
            return
        kind = reading(head.content_type, head.content_encoding)
        if kind is None:
            return
        if isinstance(kind, JsonFormat):
            self.json = kind
            self.size = head.length or 0
            return
        metadata = b""
        if head.content_type == _BYTES:
            metadata = next((value for name, value in head.headers if name.lower() == b"metadata"), b"")
        self.reader = reader = kind(metadata)
        self.is_stream = reader.stream
        if (
            self.usage_injected
            and isinstance(reader, ChunkStream)
            and head.length is None
            and head.content_encoding.strip().lower() in IDENTITY
        ):
            self.filter = StreamFilter(reader, self.fingerprint)

    @property
    def answer_id(self) -> str:
        """The id of a response (``resp_…``) that its server made; empty if it cannot be told."""
        if self.reader is None:
            return response_id_in(self.whole)
        return self.reader.answer_id if isinstance(self.reader, (JsonReader, ResponseStream)) else ""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the response; return the bytes to send to the client now."""
        if self.filter is not None:
            return self.filter.feed(data)
        if self.reader is None and self.json is not None:
            self.reader = JsonReader(self.json)
        if self.reader is not None:
            self.reader.feed(data)
        return data

    def finish(self, data: bytes) -> bytes:
        """Take the last piece; return the bytes to send to the client, including those held back."""
        if self.filter is not None:
            return self.filter.feed(data) + self.filter.finish()
        if self.reader is None:
            self.whole = data
        elif data:
            self.reader.feed(data)
        return data

    def usage(self, outcome: str) -> Usage:
        """Return the usage of the request, as the server reported it or else estimated.

        Args:
            outcome: the outcome, as in the log record.
        """
        if self.reader is not None:
            usage = self._read(self.reader, outcome)
        elif self.json is not None:
            usage = self.json.usage(self.whole) or self.json.estimate(self.prompt_tokens)
        elif not self.status and (self.prompt_tokens or self.audio) and self._was_served(outcome):
            # it ended while the server was working on it
            usage = Usage(prompt_tokens=self.prompt_tokens, total_tokens=self.prompt_tokens, estimated=True)
        else:
            return NOTHING_USED
        audio = self.audio
        if audio is not None and not usage.audio_ms and (measured := audio.milliseconds()):
            usage = msgspec.structs.replace(usage, audio_ms=measured, estimated=True)
        return usage

    def _read(self, reader: UsageReader, outcome: str) -> Usage:
        reported = reader.reported
        if reported is None or outcome == "completed":
            # a server may count in the last chunk with content
            return reader.usage() or reader.estimate(self.prompt_tokens, self.choices)
        # what the server counted before the stream was cut is not all that it generated
        usage = reader.estimate(self.prompt_tokens, self.choices)
        return msgspec.structs.replace(usage, completion_tokens=reported, total_tokens=usage.prompt_tokens + reported)

    def _was_served(self, outcome: str) -> bool:
        """Return whether the server worked on a request without a response, if it was sent."""
        return outcome in ("client_disconnected", "revoked", "cut", "failed") or (
            # the server may have generated until its time was up
            outcome == "upstream_failed" and self.pricing.generates
        )

    @property
    def reported(self) -> int | None:
        """The tokens of a stream that the server counted so far, as in `UsageReader`."""
        return None if self.reader is None else self.reader.reported

    @property
    def events(self) -> int:
        """The events of a stream with content."""
        return 0 if self.reader is None else self.reader.estimate(0, self.choices).completion_tokens

    @property
    def generated(self) -> int | None:
        """The tokens of a stream so far: as its server counted them, or else its events. None if it is no stream."""
        reader = self.reader
        if reader is None or not reader.stream:
            return None
        if reader.reported is not None:
            return reader.reported
        usage = reader.usage()
        return self.events if usage is None else usage.completion_tokens

    def text_size(self, size: int) -> int:
        """Return the bytes of text in the events of a stream of `size` bytes; 0 if they cannot be told."""
        return self.reader.text_size(size) if isinstance(self.reader, ChunkStream) else 0
