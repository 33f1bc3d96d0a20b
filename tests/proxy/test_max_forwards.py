"""``Max-Forwards``: the gateway answers the last OPTIONS itself, and counts down before it passes one on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import ROUTES, UNKNOWN
from twisted_vllm.errors import InvalidRequest, MethodNotAllowed
from twisted_vllm.http.headers import HeaderList, RequestHead
from twisted_vllm.proxy.max_forwards import MOST, is_last, one_less, own_answer

CHAT = next(row for row in ROUTES if row.path == "/v1/chat/completions")


def head(*values: bytes, method: bytes = b"OPTIONS") -> RequestHead:
    headers: HeaderList = [(b"Max-Forwards", value) for value in values]
    return RequestHead(method, b"/vllm/v1/models", b"HTTP/1.1", headers)


@pytest.mark.parametrize("value", [b"0", b"00"])
def test_the_last_options_is_answered_here(value: bytes) -> None:
    assert is_last(head(value))


@pytest.mark.parametrize("values", [(), (b"1",), (b"010",), (b"9" * 5000,)])
def test_any_other_is_passed_on(values: tuple[bytes, ...]) -> None:
    assert not is_last(head(*values))


@pytest.mark.parametrize("values", [(b"",), (b"-1",), (b"1.0",), (b"0x0",), (b"1, 0",), (b"1", b"0"), (b"\xb2",)])
def test_what_is_not_one_number_is_refused(values: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidRequest):
        is_last(head(*values))


def test_the_last_trace_is_not_allowed() -> None:
    with pytest.raises(MethodNotAllowed):
        is_last(head(b"0", method=b"TRACE"))
    assert not is_last(head(b"1", method=b"TRACE"))


def test_the_answer_names_the_methods_of_a_known_route() -> None:
    assert (own_answer(CHAT).status, own_answer(CHAT).relayed) == (204, [(b"allow", b"POST, OPTIONS")])
    assert own_answer(UNKNOWN).relayed == []


@given(st.integers(1, 10**12), st.integers(0, 3))
def test_what_is_passed_on_has_one_server_fewer(number: int, zeros: int) -> None:
    value = b"0" * zeros + b"%d" % number
    headers: HeaderList = [(b"A", b"9"), (b"max-FORWARDS", value)]
    assert one_less(headers) == [(b"A", b"9"), (b"max-FORWARDS", b"%d" % min(number - 1, MOST))]


def test_a_number_of_many_digits_is_cut() -> None:
    assert one_less([(b"Max-Forwards", b"9" * 5000)]) == [(b"Max-Forwards", b"%d" % MOST)]
