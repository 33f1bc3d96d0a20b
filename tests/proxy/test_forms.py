"""Streaming of large multipart forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface.verify import verifyObject

from tests.bodies.test_form_scan import cut, field
from tests.bodies.test_multipart import END, FILE, MODEL, TYPE
from tests.proxy.gateway_fakes import FakeRequest
from tests.proxy.test_form_spool import Threads
from twisted_vllm.errors import FormSpoolFull, ModelUndetermined
from twisted_vllm.proxy.form_body import MAX_BUFFERED, FormBody, streams
from twisted_vllm.proxy.form_files import FormFiles
from twisted_vllm.proxy.form_spool import IN_MEMORY

FORM = [(b"Content-Type", TYPE)]
LIMIT = 10 * IN_MEMORY
LONG = field(b"file", b"RIFF" + bytes(3 * IN_MEMORY), b'; filename="a.wav"')


class Server:
    """Receives the form, perhaps slowly."""

    def __init__(self, body: FormBody) -> None:
        self.received = b""
        self.failures: list[Any] = []
        self.ended = False
        body.startProducing(self).addCallbacks(self._end, self.failures.append)  # type: ignore[arg-type]  # it writes

    def _end(self, _: None) -> None:
        self.ended = True

    def write(self, data: bytes) -> None:
        self.received += data


class BufferedForm:
    """A request with a form, and the forms whose model became known."""

    def __init__(
        self,
        length: int | None,
        headers: Any = FORM,
        limit: int = LIMIT,
        decide: Callable[[Any], None] | None = None,
        files: FormFiles | None = None,
    ) -> None:
        request: Any = FakeRequest(headers=headers, body_complete=False, body_length=length)
        self.request = request
        self.threads = Threads()
        self.known: list[FormBody] = []
        self.form = FormBody(
            request,
            frozenset(),
            in_thread=self.threads,
            limit=limit,
            files=FormFiles() if files is None else files,
            on_model=decide or self.known.append,
        )
        self.form.hold_for_model()

    @property
    def is_paused(self) -> bool:
        said = [event for event in self.request.events if event in ("pause body", "resume body")]
        return said[-1:] == ["pause body"]

    def send(self, data: bytes, last: bool = False) -> None:
        self.request.sink(data, last)


@pytest.mark.parametrize(
    ("length", "does"), [(None, True), (MAX_BUFFERED + 1, True), (MAX_BUFFERED, False), (0, False)]
)
def test_a_form_streams_unless_it_is_known_to_be_small(length: int | None, does: bool) -> None:
    request: Any = FakeRequest(headers=FORM, body_complete=False, body_length=length)
    assert streams(request) is does
    request.head.first[b"content-type"] = b"application/json"
    assert not streams(request)


def test_it_is_a_body_producer() -> None:
    assert verifyObject(IBodyProducer, BufferedForm(None).form)


def test_a_form_is_passed_on_as_soon_as_it_has_named_its_model() -> None:
    held = BufferedForm(len(MODEL + FILE + END))
    held.send(MODEL + FILE[:10])
    assert [form.model for form in held.known] == ["whisper"]
    assert held.is_paused
    held.form.name_model(None)
    assert held.form.length == len(MODEL + FILE + END)
    server = Server(held.form)
    assert server.received == MODEL + FILE[:6]
    assert not held.is_paused
    held.send(FILE[10:30])
    held.send(FILE[30:] + END, True)
    assert server.received == MODEL + FILE + END
    assert server.ended


def test_a_new_name_changes_the_length_that_was_declared() -> None:
    held = BufferedForm(len(MODEL + FILE + END))
    held.send(MODEL + FILE)
    held.form.name_model("whisper-large")
    assert held.form.length == len(MODEL + FILE + END) + 6
    server = Server(held.form)
    held.send(END, True)
    assert server.received == field(b"model", b"whisper-large") + FILE + END


def test_a_chunked_form_stays_chunked() -> None:
    held = BufferedForm(None)
    held.send(MODEL + END)
    held.form.name_model("é")
    assert held.form.length is UNKNOWN_LENGTH


def test_a_new_name_cannot_end_the_field() -> None:
    held = BufferedForm(None)
    held.send(MODEL + END)
    with pytest.raises(ModelUndetermined):
        held.form.name_model("a\r\nb")


def test_a_file_before_the_model_waits_in_a_file() -> None:
    held = BufferedForm(None)
    for at in range(0, len(LONG), 65_536):
        assert not held.is_paused
        held.send(LONG[at : at + 65_536])
        if held.is_paused:
            held.threads.run()
    held.send(MODEL + END, True)
    assert held.known[0].model == "whisper"
    held.form.name_model(None)
    server = Server(held.form)
    held.threads.run()
    assert server.received == LONG + MODEL + END
    assert server.ended


def test_pending_file_writes_keep_their_order() -> None:
    held = BufferedForm(None)
    held.send(LONG)
    held.send(MODEL + END, True)
    held.form.name_model(None)
    server = Server(held.form)
    assert server.received == b""
    held.threads.run()
    assert server.received == LONG + MODEL + END
    assert server.ended


def test_a_server_that_takes_nothing_stops_what_was_held() -> None:
    held = BufferedForm(None)
    held.send(LONG)
    held.threads.run()
    held.send(MODEL + b"--XX\r\n")
    held.form.name_model(None)
    held.form.pauseProducing()
    server = Server(held.form)
    held.threads.run()
    assert server.received == b""
    held.form.resumeProducing()
    held.form.pauseProducing()
    held.threads.run()
    assert 0 < len(server.received) < len(LONG)
    assert held.is_paused
    held.form.resumeProducing()
    held.threads.run()
    assert server.received == LONG + MODEL + b"--XX\r\n"
    assert not held.is_paused
    held.form.pauseProducing()
    assert held.is_paused
    held.form.resumeProducing()
    assert not held.is_paused


def test_a_second_model_breaks_the_form_off_before_it_reaches_the_server() -> None:
    held = BufferedForm(None)
    held.send(MODEL + FILE)
    held.form.name_model(None)
    server = Server(held.form)
    held.send(field(b"model", b"other") + END, True)
    assert (MODEL + FILE).startswith(server.received)
    assert server.failures[0].check(ModelUndetermined)
    held.form.stopProducing()


def test_a_form_that_breaks_off_is_not_taken_for_whole() -> None:
    held = BufferedForm(None)
    held.send(MODEL + FILE)
    held.form.name_model(None)
    server = Server(held.form)
    held.send(b"", True)
    assert server.failures[0].check(ModelUndetermined)
    assert not server.ended


@pytest.mark.parametrize(
    ("form", "unclear"), [(FILE + END, False), (b"x" + FILE + END, True), (FILE + b"--XX\r\n\r\n\r\n", True)]
)
def test_a_form_whose_model_is_not_known_goes_on_unchanged(form: bytes, unclear: bool) -> None:
    for step in (1, 20, len(form)):
        held = BufferedForm(len(form))
        pieces = [form[at : at + step] for at in range(0, len(form), step)]
        server = None
        for number, piece in enumerate(pieces):
            held.send(piece, number == len(pieces) - 1)
            if held.known and server is None:
                held.form.name_model(None)
                server = Server(held.form)
        assert (held.form.model, held.form.fault is not None) == (None, unclear)
        assert server is not None
        assert (server.received, server.ended) == (form, True)
        assert held.form.length == len(form)


def test_a_content_type_without_a_boundary_is_detected_before_the_body() -> None:
    held = BufferedForm(None, headers=[(b"Content-Type", b"multipart/form-data")])
    assert held.known[0].fault is not None
    server = Server(held.form)
    held.send(b"anything", True)
    assert (server.received, server.ended) == (b"anything", True)


def test_a_form_that_reaches_the_limit_before_its_model_is_too_large() -> None:
    held = BufferedForm(None, limit=1_000)
    held.send(LONG)
    assert held.request.answered.status == 413
    assert held.known == []


def test_a_disconnect_while_the_form_is_buffered_leaves_nothing() -> None:
    held = BufferedForm(None)
    held.send(LONG)
    assert held.request.work is held.form
    held.request.work.cancel()
    held.threads.run()
    held.send(MODEL)
    assert held.known == []


def test_a_file_that_cannot_be_written_is_a_503_and_no_traceback() -> None:
    held = BufferedForm(None)
    held.send(LONG)
    [(done, _, _)] = held.threads.waiting
    done.errback(OSError(24, "Too many open files"))
    assert isinstance(held.request.answered, FormSpoolFull)
    assert held.request.answered.retry_after == 1
    assert held.request.failures == []


def test_a_file_that_cannot_be_read_breaks_the_form_off() -> None:
    held = BufferedForm(None)
    held.send(LONG)
    held.threads.run()
    held.send(MODEL + END)
    held.form.name_model(None)
    server = Server(held.form)
    held.threads.waiting.pop()[0].errback(OSError("broken"))
    assert server.failures[0].check(OSError)


PARTS = st.permutations([MODEL, FILE, LONG, field(b"prompt", b"a\r\n--X")])


@settings(deadline=None, max_examples=60)
@given(PARTS, st.lists(st.integers(0, 3 * IN_MEMORY), max_size=8), st.integers(1, 3), st.sampled_from([None, "other"]))
def test_whatever_the_order_the_cuts_and_the_pace_the_server_gets_the_form(
    parts: list[bytes], places: list[int], pace: int, name: str | None
) -> None:
    form = b"".join(parts) + END
    held = BufferedForm(len(form))
    server = None
    segments = cut(form, places)
    for number, segment in enumerate(segments):
        held.send(segment, number == len(segments) - 1)
        if number % pace == 0:
            held.threads.run()
        if held.known and server is None:
            held.form.name_model(name)
            server = Server(held.form)
        elif server is not None and number % 2:
            held.form.pauseProducing()
            held.form.resumeProducing()
    held.threads.run()
    assert server is not None
    assert server.ended
    assert server.received == form.replace(MODEL, field(b"model", (name or "whisper").encode()))
    assert len(server.received) == held.form.length
