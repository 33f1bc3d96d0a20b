"""Collects the prompt and the answer of one request while it passes, in bounded memory, folded in batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bodies.multipart import FormScan, find_model_in_form
from twisted_vllm.errors import ModelUndetermined
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.observability.contents.answer import Answer
from twisted_vllm.observability.contents.beginnings import LOOKED_AT, beginning_of, completed
from twisted_vllm.observability.contents.folding import Format
from twisted_vllm.observability.contents.modes import NO_LOG_MEMBER
from twisted_vllm.observability.contents.stream_texts import EventData

#: bytes of a stream that are folded together, each piece counted with `PIECE` more
BATCH = 32_768
#: bytes that Python needs for a piece
PIECE = 64
#: bytes of JSON that are kept for each byte of text that may be kept of an answer, because probabilities are left out
JSON_PER_TEXT = 4
#: the most bytes of a batch that was decompressed
MOST_INFLATED = 1_048_576

#: fields of a form that are texts; all others are files, or tell nothing
FORM_TEXTS = frozenset(
    (
        *(b"prompt", b"language", b"to_language", b"response_format", b"temperature", b"hotwords"),
        *(b"stream", b"timestamp_granularities[]", b"max_completion_tokens", b"seed"),
    )
)

_NO_LOG = b'"%b"' % NO_LOG_MEMBER.encode()
_GZIP = (b"gzip", b"x-gzip", b"deflate")
_IDENTITY = (b"", b"identity")


class Memory:
    """The bytes that are kept of all requests together.

    Attributes:
        most: the most bytes.
        used: the bytes in use; they exceed `most` by one batch and one piece at most.
    """

    __slots__ = ("most", "used")

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


class Caps(msgspec.Struct, frozen=True):
    """The most bytes that are kept of one request."""

    prompt: int
    answer: int


class Gathered:
    """The prompt and the answer of one request, while it passes.

    Attributes:
        mode: ``metadata`` or ``full``.
        format: how its answer is put together.
        prompt: its body, or the beginning of it; empty without one that is kept.
        form: the texts of its form.
        cut: whether `prompt` is only the beginning.
        truncated: whether something else was left out.
        opted_out: whether its body asks that nothing is kept; only known here of a body that is not kept whole.
        not_kept: why nothing is kept of the answer; empty if it is.
        decided_by: what stands for the settings that decided about `mode`, and the mode of the model's entries.
    """

    __slots__ = (
        "_answer",
        "_caps",
        "_events",
        "_held",
        "_inflate",
        "_is_error",
        "_is_json",
        "_memory",
        "_open",
        "_pieces",
        "_room",
        "_scan",
        "_seam",
        "_waiting",
        "cut",
        "decided_by",
        "form",
        "format",
        "mode",
        "not_kept",
        "opted_out",
        "prompt",
        "truncated",
    )

    def __init__(self, mode: str, format: Format, caps: Caps, memory: Memory) -> None:
        """Begin."""
        self.mode = mode
        self.format = format
        self.prompt = b""
        self.form: dict[str, str] = {}
        self.cut = self.truncated = self.opted_out = False
        self.not_kept = ""
        self.decided_by: tuple[object, str | None] = (None, None)
        self._caps = caps
        self._memory = memory
        self._held = 0
        self._answer = Answer(caps.answer)
        self._events: EventData[Any] | None = None
        self._inflate: Any = None
        self._is_json = self._is_error = False
        self._open = False
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._room = BATCH
        self._scan: FormScan | None = None
        #: the end of the last piece of a body that streams, behind what is kept
        self._seam = b""

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Give back the memory. Idempotent."""
        self._memory.used -= self._held + self._waiting
        self._held = self._waiting = 0
        self._open = False
        self._pieces = []

    # the prompt

    def take_json(self, body: bytes | HeldBody) -> None:
        """Take a JSON body that is in hand."""
        most, size = self._caps.prompt, len(body)
        if size <= most and self._keep(body if isinstance(body, bytes) else body.whole()):
            return
        self.cut = self.cut or size > most
        if isinstance(body, bytes):
            self.opted_out = _NO_LOG in body
            rope = body[:LOOKED_AT]
        else:
            self.opted_out = not body.reads or any(each.key == NO_LOG_MEMBER for each in body.members)
            rope = b"".join(_pieces_up_to(body, LOOKED_AT))
        if size > most:
            self._keep(beginning_of(rope, most))

    def _keep(self, prompt: bytes) -> bool:
        """Keep a prompt, and return whether there was room for it."""
        if self._memory.used + len(prompt) > self._memory.most:
            self.truncated = True
            return False
        self.prompt = prompt
        self._charge(len(prompt))
        return True

    def take_form(self, body: bytes, content_type: bytes) -> None:
        """Take the texts of a form that is in hand."""
        try:
            find_model_in_form(body, content_type, _FormTexts(self._add_form_text))
        except ModelUndetermined:
            self.truncated = True

    def watch_form(self, content_type: bytes) -> Callable[[bytes], None]:
        """Return what takes each piece of a form that streams."""
        try:
            self._scan = FormScan(content_type, _FormTexts(self._add_form_text))
        except ModelUndetermined:
            self.truncated = True
        return self._scan_form

    def _scan_form(self, data: bytes) -> None:
        scan = self._scan
        if scan is not None:
            try:
                scan.feed(data)
                # it stops at the model
                scan.feed(b"")
            except ModelUndetermined:
                self._scan, self.truncated = None, True

    def _add_form_text(self, name: str, text: bytes) -> None:
        room = self._caps.prompt - sum(map(len, self.form.values()))
        if len(text) > room or self._memory.used + len(text) > self._memory.most:
            self.truncated = True
            text = text[:room] if self._memory.used + len(text) <= self._memory.most else b""
        self.form[name] = self.form.get(name, "") + text.decode("utf-8", "replace")
        self._charge(len(text))

    def watch_json(self) -> Callable[[bytes], None]:
        """Return what takes each piece of a JSON body that streams: only its beginning is kept."""
        return self._add_to_prompt

    def _add_to_prompt(self, data: bytes) -> None:
        # behind a gap nothing is kept
        room = 0 if self.cut else min(self._caps.prompt - len(self.prompt), self._memory.most - self._memory.used)
        if len(data) > room:
            self.cut = True
        if self.cut and not self.opted_out:
            seen = (self._seam or self.prompt) + data
            self.opted_out = _NO_LOG in seen
            self._seam = seen[1 - len(_NO_LOG) :]
        if room > 0 and data:
            self.prompt += data[:room]
            self._charge(min(len(data), room))

    def _charge(self, size: int) -> None:
        self._held += size
        self._memory.used += size

    # the answer

    def start(self, head: ResponseHead) -> None:
        """Take the head of the answer that goes to the client."""
        kind = head.content_type.partition(b";")[0].strip().lower()
        encoding = head.content_encoding.strip().lower()
        if encoding in _GZIP:
            # both formats by their heads; "deflate" may also come without one
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif encoding not in _IDENTITY:
            self.not_kept = f"content-encoding {encoding[:32].decode('latin-1')}"
            return
        self._is_error = head.status >= 400
        if kind == b"text/event-stream":
            self._events = EventData(self.format.event)
        elif kind.endswith(b"json"):
            self._is_json = True
            self._room = max(BATCH, self._caps.answer * JSON_PER_TEXT)
        elif kind.startswith(b"text/"):
            self._room = self._caps.answer
        else:
            self.not_kept = "content-type " + (kind[:64].decode("latin-1") or "none")
            return
        self._open = True

    def feed(self, data: bytes) -> None:
        """Take the next piece of the answer's body, as its server sent it."""
        if not self._open:
            return
        size = len(data) + PIECE
        self._pieces.append(data)
        self._waiting += size
        memory = self._memory
        memory.used += size
        if self._waiting >= self._room or memory.used > memory.most:
            self._press()

    def _press(self) -> None:
        """Make room: fold a stream, or cut any other answer."""
        memory = self._memory
        if self._events is not None and memory.used - self._waiting < memory.most:
            self._fold(last=False)
            if memory.used <= memory.most:
                return
        elif memory.used <= memory.most and len(self._pieces) > 1:
            # many small pieces
            joined = b"".join(self._pieces)
            memory.used += len(joined) + PIECE - self._waiting
            self._pieces, self._waiting = [joined], len(joined) + PIECE
            if self._waiting < self._room:
                return
        self.truncated = True
        self._open = False
        if self._events is not None or memory.used > memory.most:
            memory.used -= self._waiting
            self._pieces, self._waiting = [], 0

    def _fold(self, *, last: bool) -> None:
        data, self._pieces = b"".join(self._pieces), []
        self._memory.used -= self._waiting
        self._waiting = 0
        events, answer = self._events, self._answer
        assert events is not None
        if self._inflate is not None:
            data = self._inflated(data)
        before = answer.size
        self.format.events(answer, events.feed(data))
        if last:
            self.format.events(answer, events.finish())
        answer.join_pieces()
        self._charge(answer.size - before)

    def _inflated(self, data: bytes) -> bytes:
        try:
            found: bytes = self._inflate.decompress(data, MOST_INFLATED)
        except zlib.error:
            self.truncated, self._open = True, False
            return b""
        if self._inflate.unconsumed_tail:
            self.truncated, self._open = True, False
        return found

    def answer(self) -> Answer:
        """Return what the answer is, once it has ended."""
        answer = self._answer
        if self._events is not None:
            self._fold(last=True)
            self.truncated = self.truncated or self._events.lost
        elif self._pieces:
            data, self._pieces = b"".join(self._pieces), []
            if self._inflate is not None:
                data = self._inflated(data)
            self._take_body(answer, data)
        self._open = False
        self.truncated = self.truncated or answer.truncated
        return answer

    def _take_body(self, answer: Answer, data: bytes) -> None:
        if not self._is_json:
            text = data.decode("utf-8", "replace")
            if self._is_error:
                answer.error = text[: self._caps.answer]
            else:
                answer.add(answer.choice(0).text, text)
            return
        kind = Any if self._is_error else self.format.kind
        body, whole = decoded(data, kind)
        self.truncated = self.truncated or not whole
        if self._is_error:
            answer.error = body.get("error", body) if isinstance(body, dict) else body
        elif body is not None:
            self.format.body(answer, body)


class _FormTexts:
    """Gathers the texts of a form: a `FormObserver`."""

    def __init__(self, add: Callable[[str, bytes], None]) -> None:
        self._add = add
        self._name = ""

    def part(self, name: bytes) -> None:
        self._name = name.decode("ascii") if name in FORM_TEXTS else ""

    def content(self, data: bytes, start: int, end: int) -> None:
        if self._name:
            self._add(self._name, data[start:end])


def _pieces_up_to(body: HeldBody, most: int) -> list[bytes]:
    pieces, size = [], 0
    for piece in body.rope():
        pieces.append(piece)
        size += len(piece)
        if size >= most:
            break
    return pieces


def decoded(data: bytes, kind: Any = Any) -> tuple[Any, bool]:
    """Return what JSON says, and whether it was complete; None if it is no JSON at all."""
    whole = True
    for attempt in (data, None):
        if attempt is None:
            whole, attempt = False, completed(data)
        try:
            return msgspec.json.decode(attempt, type=kind), whole
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return None, False
