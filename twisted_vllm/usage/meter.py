"""The meter of one request: observes its response and reports its usage at the end."""

from __future__ import annotations

import msgspec

from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.usage.pricing import RoutePricing
from twisted_vllm.usage.readers.registry import JsonFormat, JsonReader, UsageReader
from twisted_vllm.usage.readers.stream_filter import Fingerprint, StreamFilter
from twisted_vllm.usage.readers.streams import ChunkStream
from twisted_vllm.usage.readers.uploaded_audio import UploadedAudio
from twisted_vllm.usage.records import NOTHING_USED, Usage

#: the ``Content-Type`` of answers that report their usage in their head, if at all
_BYTES = b"application/octet-stream"


class UsageMeter(msgspec.Struct, eq=False):
    """The meter of one request.

    Attributes:
        pricing: what the request costs, and how its answer is read.
        prompt_tokens: the prompt's tokens, estimated.
        answers: how many answers it asks for.
        usage_injected: whether the gateway asked for the usage of the stream, which the client did not.
        fingerprint: the server's fingerprint, if usage was asked for.
        status: the status of the server's response; 0 before it.
        is_stream: whether the response is a stream of events.
        json: the format of the response, if it is JSON.
        whole: the JSON, if it came in one piece, as most does.
        reader: reads any other response that may report its usage.
        filter: removes from the stream what the client did not ask for; it feeds `reader`.
        audio: measures the audio that the request uploads.
    """

    pricing: RoutePricing
    prompt_tokens: int
    answers: int
    usage_injected: bool
    fingerprint: Fingerprint | None = None
    status: int = 0
    is_stream: bool = False
    json: JsonFormat | None = None
    whole: bytes = b""
    reader: UsageReader | None = None
    filter: StreamFilter | None = None
    audio: UploadedAudio | None = None

    def start(self, head: ResponseHead) -> None:
        """Take the head of the response, which tells how its body is read."""
        self.status = status = head.status
        reading = self.pricing.reading
        if reading is None or not 200 <= status < 300:
            return
        found = reading(head.content_type, head.content_encoding)
        if found is None:
            return
        if isinstance(found, JsonFormat):
            self.json = found
            return
        metadata = b""
        if head.content_type == _BYTES:
            metadata = next((value for name, value in head.headers if name.lower() == b"metadata"), b"")
        self.reader = reader = found(metadata)
        self.is_stream = reader.stream
        if (
            self.usage_injected
            and isinstance(reader, ChunkStream)
            and head.length is None
            and not head.content_encoding
        ):
            self.filter = StreamFilter(reader, self.fingerprint)

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the response; return what the client gets of it now."""
        if self.filter is not None:
            return self.filter.feed(data)
        if self.reader is None and self.json is not None:
            self.reader = JsonReader(self.json)
        if self.reader is not None:
            self.reader.feed(data)
        return data

    def finish(self, data: bytes) -> bytes:
        """Take the last piece; return what the client gets: it, and whatever was held back."""
        if self.filter is not None:
            return self.filter.feed(data) + self.filter.finish()
        if self.reader is None:
            self.whole = data
        elif data:
            self.reader.feed(data)
        return data

    def usage(self, outcome: str) -> Usage:
        """Return what the request used: by the server's report, or else estimated.

        Args:
            outcome: how it ended, as in its log record.
        """
        if self.reader is not None:
            usage = self.reader.usage() or self.reader.estimate(self.prompt_tokens, self.answers)
        elif self.json is not None:
            usage = self.json.usage(self.whole) or self.json.estimate(self.prompt_tokens)
        elif not self.status and outcome in ("client_disconnected", "revoked") and (self.prompt_tokens or self.audio):
            # it ended while the server was at work
            usage = Usage(prompt_tokens=self.prompt_tokens, total_tokens=self.prompt_tokens, estimated=True)
        else:
            return NOTHING_USED
        audio = self.audio
        if audio is not None and not usage.audio_ms and (measured := audio.milliseconds()):
            usage = msgspec.structs.replace(usage, audio_ms=measured, estimated=True)
        return usage
