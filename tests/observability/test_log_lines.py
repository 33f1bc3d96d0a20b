from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from tests.builders import RECORD
from twisted_vllm.observability.logging.lines import (
    INDENT,
    MAX_TEXT_LENGTH,
    ILines,
    JsonLines,
    TextLines,
    json_line,
    many_lines,
    one_line,
    word,
)
from twisted_vllm.observability.logging.redaction import Redactor

#: text with everything that has ever forged a log: newlines, escapes, separators, bidi, surrogates
hostile_text = st.text(
    st.one_of(st.characters(), st.sampled_from('\n\r\x1b\x07\x00\x85\u2028\u2029\u202e\x9b\ud800\\" =')), max_size=40
)


def event(text: str, **more: Any) -> dict[str, Any]:
    return {
        "log_time": 1_800_000_000.5,
        "log_level": LogLevel.info,
        "log_namespace": "twisted_vllm.test",
        "log_format": "{text}",
        "text": text,
        **more,
    }


def failure() -> Failure:
    try:
        raise ValueError("password is hunter2-hunter2")
    except ValueError:
        return Failure()


@pytest.mark.parametrize("lines", [JsonLines(), TextLines(), TextLines(terminal=True)])
def test_every_format_keeps_the_contract(lines: Any) -> None:
    assert verifyObject(ILines, lines)
    for line in (lines.request(RECORD, "info"), lines.event(event("hello")), lines.dropped(3)):
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1


def test_a_json_line_holds_the_whole_record() -> None:
    record = msgspec.structs.replace(
        RECORD,
        queued_ms=1.5,
        repeated_as="77aa",
        attempts="gpu-1:8000 status_503",
        fallback="small",
        trace_id="0af7651916cd43dd8448eb211c80319c",
    )
    found = json.loads(JsonLines().request(record, "warn"))
    assert found == {**msgspec.structs.asdict(record), "level": "warn", "namespace": "twisted_vllm.requests"}


def test_a_json_event_has_time_level_namespace_and_message() -> None:
    assert json.loads(JsonLines().event(event("hello"))) == {
        "time": "2027-01-15T08:00:00.500Z",
        "level": "info",
        "namespace": "twisted_vllm.test",
        "message": "hello",
    }


def test_a_json_event_has_its_traceback_apart_and_without_secrets() -> None:
    line = JsonLines(Redactor(["hunter2-hunter2"])).event(event("it broke", log_failure=failure()))
    found = json.loads(line)
    assert found["message"] == "it broke"
    assert "ValueError: password is ***" in found["failure"]
    assert b"hunter2-hunter2" not in line.replace(b'raise ValueError(\\"password is hunter2-hunter2\\")', b"")


def test_an_error_of_the_old_log_has_its_traceback_once() -> None:
    old = event("why\nTraceback ...", failure=failure(), why="it broke", log_level=LogLevel.critical)
    found = json.loads(JsonLines().event(old))
    assert found["message"] == "it broke"
    assert found["failure"].count("Traceback") == 1


def test_an_event_without_a_time_gets_the_clock_s() -> None:
    assert json.loads(JsonLines(seconds=lambda: 0.0).event({"log_format": "x"}))["time"] == "1970-01-01T00:00:00.000Z"


def test_an_event_that_cannot_be_formatted_is_logged_all_the_same() -> None:
    found = json.loads(JsonLines().event({"log_format": "{missing}", "log_level": LogLevel.info}))
    assert "missing" in found["message"]


def test_a_very_long_message_is_cut() -> None:
    message = json.loads(JsonLines().event(event("x" * (MAX_TEXT_LENGTH + 5))))["message"]
    assert message.endswith("x ... (5 more characters)")


def test_the_text_of_a_request_reads_in_one_line() -> None:
    assert TextLines().request(RECORD, "info").decode() == (
        "2026-11-24T12:00:01.123Z 200 POST /v1/chat/completions qwen key=team-a 12.3ms ttfb=4.0ms 1.2kB"
        " → host:8000 rid=5f0e\n"
    )


def test_the_time_in_a_queue_is_told_where_there_was_one() -> None:
    record = msgspec.structs.replace(RECORD, queued_ms=12_500.0)
    assert " ttfb=4.0ms queued=12.5s " in TextLines().request(record, "info").decode()
    assert json.loads(JsonLines().request(record, "info"))["queued_ms"] == 12_500.0
    assert "queued_ms" not in json.loads(JsonLines().request(RECORD, "info"))


def test_the_id_of_a_second_attempt_is_told_where_there_was_one() -> None:
    record = msgspec.structs.replace(RECORD, repeated_as="77aa")
    assert TextLines().request(record, "info").decode().endswith(" rid=5f0e repeated_as=77aa\n")
    assert json.loads(JsonLines().request(record, "info"))["repeated_as"] == "77aa"
    assert "repeated_as" not in json.loads(JsonLines().request(RECORD, "info"))


def test_a_terminal_gets_colours_and_short_times() -> None:
    line = TextLines(terminal=True).request(RECORD, "info").decode()
    assert line.startswith("12:00:01.123 \x1b[32m200\x1b[0m POST ")


def test_a_refused_request_says_why_and_leaves_out_what_it_has_not() -> None:
    refused = msgspec.structs.replace(
        RECORD,
        status=401,
        outcome="refused",
        error="invalid_api_key",
        key_name="",
        model="",
        server="",
        first_byte_ms=None,
    )
    assert TextLines().request(refused, "info").decode() == (
        "2026-11-24T12:00:01.123Z 401 POST /v1/chat/completions 12.3ms 1.2kB refused error=invalid_api_key rid=5f0e\n"
    )


def test_long_times_and_large_bodies_are_readable() -> None:
    line = TextLines().request(
        msgspec.structs.replace(RECORD, total_ms=61_250.0, bytes_out=5_300_000, status=0), "info"
    )
    assert " --- " in line.decode()
    assert " 61.2s " in line.decode()
    assert " 5.3MB " in line.decode()


def test_a_traceback_is_indented_below_its_line() -> None:
    first, *rest = TextLines().event(event("it broke", log_failure=failure())).decode().splitlines()
    assert first == "2027-01-15T08:00:00.500Z info  [twisted_vllm.test] it broke"
    assert rest and all(line.startswith(INDENT) for line in rest)


@given(hostile_text, hostile_text, hostile_text, hostile_text)
def test_no_request_can_forge_a_line(route: str, model: str, request_id: str, key: str) -> None:
    record = msgspec.structs.replace(RECORD, route=route, model=model, request_id=request_id, key_name=key)
    for lines in (JsonLines(), TextLines()):
        text = lines.request(record, "info").decode("utf-8")
        assert text.endswith("\n")
        assert text[:-1].isprintable()
    found = json.loads(JsonLines().request(record, "info"))
    if "\\" not in route and not any("\ud800" <= c <= "\udfff" for c in route + model + request_id + key):
        assert found["route"] == route


@given(hostile_text)
def test_no_message_can_forge_a_line(text: str) -> None:
    encoded = JsonLines().event(event(text)).decode("utf-8")
    assert encoded[:-1].isprintable()
    assert json.loads(encoded)["level"] == "info"
    first, *rest = TextLines().event(event(text)).decode("utf-8")[:-1].split("\n")
    assert first.startswith("2027-01-15T08:00:00.500Z info  [twisted_vllm.test] ")
    assert all(line.startswith(INDENT) for line in rest)
    assert all(line.isprintable() for line in (first, *rest))


def test_a_field_with_spaces_or_quotes_stays_one_field() -> None:
    assert word('x key=admin "200') == '"x key=admin \\"200"'
    assert word('x\\" key=admin') == '"x\\\\\\" key=admin"'
    assert word("") == '""'
    assert word("qwen/Qwen2.5-7B:latest") == "qwen/Qwen2.5-7B:latest"


def test_escapes_are_visible() -> None:
    assert one_line("a\x1b[31mb\n\u202e") == "a\\x1b[31mb\\n\\u202e"
    assert many_lines("a\nb\r\x1b", "> ") == "a\n> b\\r\\x1b"


@given(st.text())
def test_json_keeps_its_meaning_when_it_is_escaped(text: str) -> None:
    assert json.loads(json_line(msgspec.json.encode(text))) == text
