"""W3C Trace Context: what is read, what is not, and that nothing else comes through.

The cases follow the test suite of the W3C (github.com/w3c/trace-context, test/test.py).
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.http.headers import RequestHead
from twisted_vllm.observability.tracing.propagation import (
    LONGEST_STATE,
    Incoming,
    read,
    read_state,
    write_parent,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def reading(*headers: tuple[str, str]) -> Incoming | None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    head = RequestHead(b"POST", b"/", b"HTTP/1.1", pairs)
    return read(head.first, head.names, head.headers)


def test_a_valid_parent_is_read() -> None:
    assert reading(("traceparent", VALID)) == Incoming(TRACE, SPAN, True, b"")


def test_the_name_of_the_header_has_any_case() -> None:
    assert reading(("TraceParent", VALID)) is not None


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_only_the_flag_sampled_counts(flags: str, sampled: bool) -> None:
    found = reading(("traceparent", f"00-{TRACE}-{SPAN}-{flags}"))
    assert found is not None
    assert found.sampled is sampled


@pytest.mark.parametrize(
    "value",
    [
        "",
        "foo",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-0X",
        f"00-{TRACE}-{SPAN}-.0",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
        f"00-{TRACE}-{SPAN}-01.",
        f"00-{TRACE}.-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"0X-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 300}",
    ],
)
def test_a_malformed_parent_begins_a_new_trace(value: str) -> None:
    assert reading(("traceparent", value), ("tracestate", "a=1")) is None


@pytest.mark.parametrize("value", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"])
def test_a_later_version_is_read_as_far_as_it_is_known(value: str) -> None:
    assert reading(("traceparent", value)) == Incoming(TRACE, SPAN, True, b"")


def test_two_parents_are_none() -> None:
    assert reading(("traceparent", VALID), ("traceparent", VALID)) is None


def test_a_state_without_a_parent_is_none() -> None:
    assert reading(("tracestate", "a=1")) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["foo=1"], "foo=1"),
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1", "bar=2"], "foo=1,bar=2"),
        (["foo=1 \t , \t bar=2, \t baz=3"], "foo=1,bar=2,baz=3"),
        (["foo=1,", ",bar=2"], "foo=1,bar=2"),
        ([""], ""),
        (["foo@bar=1"], "foo@bar=1"),
        (["0foo@bar=1"], "0foo@bar=1"),
        (["a-b*c/d_e=1"], "a-b*c/d_e=1"),
        (["foo= 1"], "foo= 1"),
        (["foo=,,=bar"], ""),
        (["foo"], ""),
        (["=1"], ""),
        (["foo="], ""),
        (["foo@=1"], ""),
        (["@foo=1"], ""),
        (["foo@@bar=1"], ""),
        (["foo@bar@baz=1"], ""),
        (["FOO=1"], ""),
        (["foo.fizz=buzz"], ""),
        (["foo =1"], ""),
        (["foo=1=2"], ""),
        (["foo=\x01"], ""),
        (["foo=bar\x7f"], ""),
        (["foo=\xe9"], ""),
        ([f"{'z' * 256}=1"], f"{'z' * 256}=1"),
        ([f"{'z' * 257}=1"], ""),
        ([f"{'t' * 241}@{'v' * 14}=1"], f"{'t' * 241}@{'v' * 14}=1"),
        ([f"{'t' * 242}@v=1"], ""),
        ([f"t@{'v' * 15}=1"], ""),
        ([f"foo={'x' * 257}"], ""),
        ([",".join(f"bar{n:02}=1" for n in range(32))], ",".join(f"bar{n:02}=1" for n in range(32))),
        ([",".join(f"bar{n:02}=1" for n in range(33))], ""),
    ],
)
def test_a_state_goes_on_as_it_is_or_not_at_all(values: list[str], expected: str) -> None:
    assert read_state([value.encode("latin-1") for value in values]) == expected.encode()


def test_a_malformed_state_does_not_end_the_trace() -> None:
    assert reading(("traceparent", VALID), ("tracestate", "foo")) == Incoming(TRACE, SPAN, True, b"")


def test_of_a_long_state_long_entries_go_first_and_then_the_last() -> None:
    entries = [f"k{n}={'x' * 62}" for n in range(8)]
    long = f"long={'y' * 200}"
    kept = read_state([",".join([entries[0], long, *entries[1:]]).encode()])
    assert long.encode() not in kept
    assert kept == ",".join(entries[:7]).encode()
    assert len(kept) <= LONGEST_STATE


def test_a_huge_state_costs_nothing() -> None:
    assert read_state([b"a=1," * 100_000]) == b""


hexadecimal = st.text("0123456789abcdef")


@given(
    st.from_regex(r"[0-9a-f]{32}", fullmatch=True).filter(lambda text: set(text) != {"0"}),
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True).filter(lambda text: set(text) != {"0"}),
    st.booleans(),
)
def test_what_is_written_is_read(trace_id: str, span_id: str, sampled: bool) -> None:
    written = write_parent(trace_id, span_id, sampled=sampled).decode()
    assert len(written) == 55
    assert reading(("traceparent", written)) == Incoming(trace_id, span_id, sampled, b"")


@given(st.binary(max_size=200))
def test_whatever_is_read_is_well_formed(value: bytes) -> None:
    found = read({b"traceparent": value}, [b"traceparent"], [(b"traceparent", value)])
    if found is not None:
        assert re.fullmatch(r"[0-9a-f]{32}", found.trace_id)
        assert re.fullmatch(r"[0-9a-f]{16}", found.parent_id)


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=300), max_size=40))
def test_a_state_is_bounded_and_safe_in_a_header(values: list[str]) -> None:
    found = read_state([value.encode("latin-1") for value in values])
    assert len(found) <= LONGEST_STATE
    assert re.fullmatch(rb"[\x20-\x7e]*", found)
    assert read_state([found]) == found
