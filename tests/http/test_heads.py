"""Checks of heads, the choice of forwarded headers, and the serialization of heads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.errors import GatewayError, MalformedHttp, MethodNotAllowed
from twisted_vllm.http.headers import (
    FOR_EVERYBODY,
    HOP_BY_HOP,
    HeaderList,
    ResponseHead,
    is_form,
    is_json,
    nominated,
    relayed_trailers,
    twin,
    write_header_lines,
    write_last_chunk,
    write_response_head,
)
from twisted_vllm.http.server.request_line import asked_protocols, closes, origin_form

HOST: HeaderList = [(b"Host", b"gateway:4000")]


def target_of(target: bytes, method: bytes = b"GET", version: str = "1.1", headers: HeaderList = HOST) -> bytes:
    first: dict[bytes, bytes] = {}
    for name, value in headers:
        first.setdefault(name.lower(), value)
    return origin_form(method, target, version, headers, first)


@pytest.mark.parametrize("target", [b"/", b"/vllm/a%2Fb?c=d&c=d+e", b"//double", b"/a?b=http://c", b"/../a", b"/?"])
def test_a_path_is_taken_byte_for_byte(target: bytes) -> None:
    assert target_of(target) == target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://gateway:4000/vllm/a?b", b"/vllm/a?b"),
        (b"https://gateway:4000/vllm/a", b"/vllm/a"),
        (b"HTTP://GATEWAY:4000/vllm/A", b"/vllm/A"),
        (b"http://gateway:4000", b"/"),
        (b"http://gateway:4000/", b"/"),
    ],
)
def test_a_target_that_names_this_host_is_taken_without_it(target: bytes, expected: bytes) -> None:
    assert target_of(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        b"http://other/",
        b"http://gateway/",
        b"http://a@gateway:4000/",
        b"http:///a",
        b"http://",
        b"ftp://gateway:4000/",
        b"a",
        b"*",
        b"",
        b"?a",
    ],
)
def test_a_target_that_is_no_path_of_this_host_is_refused(target: bytes) -> None:
    with pytest.raises(MalformedHttp):
        target_of(target)


def test_the_star_is_for_options() -> None:
    assert target_of(b"*", b"OPTIONS") == b"*"


def test_connect_is_refused_as_a_method() -> None:
    with pytest.raises(MethodNotAllowed):
        target_of(b"gateway:4000", b"CONNECT")


@pytest.mark.parametrize("version", ["0.9", "2.0", "1.2", "0.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(MalformedHttp):
        target_of(b"/", version=version)


def test_http_1_1_must_name_its_host_and_http_1_0_need_not() -> None:
    assert target_of(b"/", version="1.0", headers=[]) == b"/"
    with pytest.raises(MalformedHttp):
        target_of(b"/", headers=[])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_two_hosts_are_refused_also_when_they_agree(version: str) -> None:
    with pytest.raises(MalformedHttp):
        target_of(b"/", version=version, headers=[*HOST, (b"X-A", b"1"), (b"HOST", b"gateway:4000")])


def test_other_headers_may_stand_twice() -> None:
    assert target_of(b"/", headers=[*HOST, (b"X-A", b"1"), (b"x-a", b"1")]) == b"/"


@pytest.mark.parametrize("host", [b"gateway", b"gateway:80", b"[::1]:4000", b"127.0.0.1", b"a_b.c"])
def test_hosts_and_addresses_are_taken(host: bytes) -> None:
    assert target_of(b"/", headers=[(b"Host", host)]) == b"/"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("host", [b"", b":4000", b":"])
def test_an_empty_host_is_refused(host: bytes, version: str) -> None:
    """No http URL has an empty host (RFC 9110 §4.2.1)."""
    with pytest.raises(MalformedHttp):
        target_of(b"/", version=version, headers=[(b"Host", host)])


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"a@b", b"a?b", b"a#b", b"a\\b", b"a,b c", b"caf\xc3\xa9"])
def test_what_is_no_host_is_refused(host: bytes) -> None:
    with pytest.raises(MalformedHttp):
        target_of(b"/", headers=[(b"Host", host)])


@given(st.binary(max_size=30), st.sampled_from([b"GET", b"OPTIONS", b"CONNECT"]), st.sampled_from(["1.0", "1.1"]))
def test_a_target_is_refused_or_becomes_a_path(target: bytes, method: bytes, version: str) -> None:
    try:
        found = target_of(target, method, version)
    except GatewayError:
        return
    assert found[:1] == b"/" or found == b"*"


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        ("1.1", None, False),
        ("1.1", b"keep-alive", False),
        ("1.1", b"close", True),
        ("1.1", b"Upgrade, CLOSE", True),
        ("1.1", b"closed", False),
        ("1.0", None, True),
        ("1.0", b"keep-alive", True),
    ],
)
def test_who_wants_the_connection_closed(version: str, connection: bytes | None, expected: bool) -> None:
    assert closes(version, {} if connection is None else {b"connection": connection}) is expected


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        (None, set()),
        (b"close", set()),
        (b"", set()),
        (b"X-A , x-b,,", {b"x-a", b"x-b"}),
        (b"keep-alive, X-Secret", {b"keep-alive", b"x-secret"}),
    ],
)
def test_the_headers_that_connection_nominates(connection: bytes | None, expected: set[bytes]) -> None:
    assert nominated(connection) == expected


def test_a_servers_headers_go_on_but_those_about_its_own_connection() -> None:
    headers: HeaderList = [
        (b"Content-Type", b"text/event-stream"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"connection", b"X-Hop-Too"),
        (b"Keep-Alive", b"timeout=5"),
        (b"x-hop", b"1"),
        (b"X-HOP-TOO", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Set-Cookie", b"a"),
        (b"Set-Cookie", b"b"),
        (b"content-length", b"3"),
    ]
    head = ResponseHead(200, b"OK", headers)
    assert head.headers == headers
    assert head.relayed == [headers[0], headers[8], headers[9], headers[10]]
    assert (head.coding, head.connection, head.length) == (b"chunked", b"keep-alive, X-Hop,X-Hop-Too", 3)


@pytest.mark.parametrize("name", [name for name in sorted(FOR_EVERYBODY) if name not in HOP_BY_HOP])
def test_no_connection_header_takes_away_what_is_for_everybody(name: bytes) -> None:
    headers: HeaderList = [(b"Connection", b"close, X-Hop, " + name.title()), (name.upper(), b"7"), (b"X-Hop", b"1")]
    head = ResponseHead(200, b"OK", headers)
    assert head.relayed == [headers[1]]
    assert nominated(headers[0][1]) == {b"x-hop"}


def test_a_server_cannot_speak_as_the_gateway() -> None:
    headers: HeaderList = [
        (b"X-Vllm-Passthrough-Error", b"budget_exceeded"),
        (b"x-vllm-passthrough-new", b"1"),
        (b"X-RateLimit-Remaining-Requests", b"0"),
        (b"X-LiteLLM-Call-Id", b"another"),
        (b"X-Vllm", b"its own"),
        (b"Content-Length", b"0"),
    ]
    assert ResponseHead(200, b"OK", headers).relayed == headers[4:]
    assert relayed_trailers(headers) == [headers[4]]
    assert ResponseHead.own(429, b"Too Many Requests", headers).relayed == headers


@pytest.mark.parametrize(
    "name", [b"content_length", b"content.length", b"transfer_encoding", b"x_api_key", b"content~type"]
)
def test_what_some_servers_take_for_another_header_is_its_twin(name: bytes) -> None:
    assert twin(name).decode().replace("-", "") == name.decode().translate({ord(c): None for c in "_.~"})


@given(st.binary(max_size=40))
def test_a_name_of_letters_digits_and_dashes_is_its_own_twin(name: bytes) -> None:
    plain = all((chr(byte).isalnum() and byte < 128) or byte == ord("-") for byte in name)
    assert (twin(name) == name) is plain
    assert len(twin(name)) == len(name)
    assert twin(twin(name)) == twin(name)


@pytest.mark.parametrize("name", [b"Content_Length", b"HOST", b"x_request_id", b"Set.Cookie", b"Transfer_Encoding"])
def test_trailers_that_some_servers_take_for_framing_stay_behind(name: bytes) -> None:
    assert relayed_trailers([(name, b"1"), (b"X_Sum", b"1")]) == [(b"X_Sum", b"1")]


def test_a_length_is_found_whatever_its_case() -> None:
    assert ResponseHead(200, b"", [(b"x", b"1"), (b"CONTENT-length", b"42")]).length == 42
    assert ResponseHead(200, b"", [(b"content_length", b"42"), (b"x-content-len", b"1")]).length is None


def test_a_coding_in_two_headers_is_both_of_them() -> None:
    headers = [(b"Transfer-Encoding", b"GZIP"), (b"transfer-encoding", b"chunked")]
    assert ResponseHead(200, b"", headers).coding == b"gzip,chunked"


def test_a_servers_own_request_id_is_noticed() -> None:
    assert ResponseHead(200, b"", [(b"X-Request-Id", b"1")]).has_request_id
    assert not ResponseHead(200, b"", [(b"X-Request-Ids", b"1")]).has_request_id


def test_trailers_that_frame_route_or_authenticate_stay_behind() -> None:
    trailers = [
        (b"X-Sum", b"1"),
        (b"Content-Length", b"7"),
        (b"HOST", b"a"),
        (b"Authorization", b"b"),
        (b"X-Own", b"c"),
    ]
    assert relayed_trailers(trailers) == [trailers[0], trailers[4]]
    assert relayed_trailers(trailers, frozenset((b"x-own",))) == [trailers[0]]


def test_what_ends_a_chunked_body() -> None:
    assert write_last_chunk(None) == b"0\r\n\r\n"
    assert write_last_chunk([(b"X-Sum", b"1"), (b"x-b", b"2")]) == b"0\r\nX-Sum: 1\r\nx-b: 2\r\n\r\n"


def test_heads_are_written_as_they_were_given() -> None:
    pairs = [(b"A", b"1"), (b"a", b"2")]
    assert write_header_lines(pairs) == b"A: 1\r\na: 2\r\n"
    assert write_response_head(200, b"All right", pairs) == b"HTTP/1.1 200 All right\r\nA: 1\r\na: 2\r\n\r\n"
    assert write_response_head(200, b"", []) == b"HTTP/1.1 200 \r\n\r\n"
    assert write_response_head(200, b"", pairs[:1], b"b: 3\r\n") == b"HTTP/1.1 200 \r\nA: 1\r\nb: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/problem+json", True),
        (b"text/json", False),
        (b"application/jsonl", False),
        (b"multipart/form-data; boundary=a", False),
        (b"", False),
    ],
)
def test_what_is_json(content_type: bytes, expected: bool) -> None:
    assert is_json({b"content-type": content_type}) is expected


def test_what_is_a_form() -> None:
    assert is_form({b"content-type": b"Multipart/Form-Data; boundary=a"})
    assert not is_form({b"content-type": b"multipart/mixed"})
    assert not is_form({})
    assert not is_json({})


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ([(b"Upgrade", b"websocket")], {b"websocket"}),
        ([(b"UPGRADE", b" WebSocket "), (b"upgrade", b"foo/2,, BAR")], {b"websocket"}),
        ([(b"Upgrade", b"")], set()),
        ([], set()),
    ],
)
def test_the_protocols_that_a_request_asks_to_switch_to(headers: HeaderList, asked: set[bytes]) -> None:
    assert asked_protocols(b"GET", "1.1", headers) == asked


@pytest.mark.parametrize(
    "name",
    [
        *(b"h2c", b"H2C", b"h2c-14", b"h2c-16", b"h2", b"h2-14", b"HTTP/2.0", b"http/1.1", b"TLS/1.0", b"tls / 1.3"),
        *(b"SPDY/3", b"connect-udp", b"websocket/13", b"websocket-2", b"whatever is to come"),
    ],
)
def test_no_protocol_but_websocket_is_asked_for_whatever_its_version(name: bytes) -> None:
    assert asked_protocols(b"GET", "1.1", [(b"Upgrade", name)]) == set()
    assert asked_protocols(b"GET", "1.1", [(b"Upgrade", b"websocket, " + name)]) == {b"websocket"}
    assert asked_protocols(b"GET", "1.1", [(b"Upgrade", name), (b"Upgrade", b"websocket")]) == {b"websocket"}


def test_an_upgrade_is_ignored_in_http_1_0_and_for_methods_that_have_no_use_for_it() -> None:
    headers = [(b"Upgrade", b"websocket")]
    assert asked_protocols(b"GET", "1.0", headers) == set()
    for method in (b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE"):
        assert asked_protocols(method, "1.1", headers) == set()
