"""What a web page may do: decided by Host, Origin and Sec-Fetch-Site."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.errors import GatewayError, HostNotAllowed, OriginNotAllowed, UnsupportedMediaType
from twisted_vllm.http.web_pages import NO_WEB_PAGES, WebPages

OPEN = WebPages(is_open=True)
ANYWHERE = WebPages(is_open=True, any_address=True)

LOOPBACK = [
    *("localhost", "LOCALHOST", "localhost.", "localhost:4000", "localhost:", "app.localhost:80", "a.b.localhost"),
    *("127.0.0.1", "127.0.0.1:4000", "127.255.255.254:1", "[::1]", "[::1]:4000", "[0:0:0:0:0:0:0:1]"),
    *("[::ffff:127.0.0.1]:4000", "0.0.0.0:4000", "[::]:4000"),
]
ADDRESSES = [
    "192.0.2.7",
    "10.0.0.1:4000",
    "[2001:db8::7]:4000",
    "[fe80::1%25eth0]",
    "128.0.0.1",
]
FOREIGN_NAMES = [
    *("attacker.example", "attacker.example:4000", "localhost.attacker.example", "127.0.0.1.attacker.example"),
    *(
        "notlocalhost",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "",
        ":4000",
        "localhost:4000:1",
        "%6cocalhost",
    ),
    *("gateway", "\xe9.localhost.example", "localhost%00"),
]


def outcome(pages: WebPages, **headers: str) -> type[GatewayError] | None:
    """Return with which error a request with these headers is refused; None if it passes."""
    found = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    try:
        pages.check(found)
    except GatewayError as error:
        return type(error)
    return None


@pytest.mark.parametrize("host", LOOPBACK)
def test_a_name_of_this_machine_passes(host: str) -> None:
    assert outcome(OPEN, host=host) is outcome(ANYWHERE, host=host) is None


@pytest.mark.parametrize("host", FOREIGN_NAMES)
def test_a_name_that_a_page_may_have_bound_to_this_machine_is_refused(host: str) -> None:
    assert outcome(OPEN, host=host) is outcome(ANYWHERE, host=host) is HostNotAllowed


@pytest.mark.parametrize("host", ADDRESSES)
def test_another_address_passes_only_where_the_gateway_serves_other_machines(host: str) -> None:
    assert outcome(OPEN, host=host) is HostNotAllowed
    assert outcome(ANYWHERE, host=host) is None


def test_a_request_without_a_host_is_no_browsers() -> None:
    assert outcome(OPEN) is None


@pytest.mark.parametrize(
    ("pattern", "host", "passes"),
    [
        ("gateway", "Gateway:4000", True),
        ("gateway", "gateway.example", False),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.example.com.attacker.example", False),
        ("2001:db8::7", "[2001:db8::7]:4000", True),
        ("[2001:db8::7]", "[2001:db8::7]", True),
        ("10.0.0.*", "10.0.0.7", True),
        ("a.c", "abc", False),
        ("*", "anything.example", True),
    ],
)
def test_hosts_may_be_allowed(pattern: str, host: str, passes: bool) -> None:
    assert (outcome(WebPages(is_open=True, hosts=["other", pattern]), host=host) is None) is passes


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:4000", "localhost:4000"),
        ("https://localhost:4000", "LocalHost:4000"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("http://localhost:80", "localhost"),
        ("https://localhost", "localhost:443"),
        ("http://[::1]:4000", "[::1]:4000"),
    ],
)
def test_a_page_of_the_gateways_own_origin_passes(origin: str, host: str) -> None:
    assert outcome(OPEN, host=host, origin=origin, sec_fetch_site="same-origin") is None


@pytest.mark.parametrize(
    "origin",
    [
        *("http://attacker.example", "null", "http://localhost", "http://localhost:3000", "https://localhost"),
        *(
            "http://127.0.0.1:4000",
            "http://a.localhost:4000",
            "file://",
            "chrome-extension://abcdef",
            "app://localhost:4000",
        ),
        *("", "localhost:4000", "http://", "http://localhost:4000/", "http://localhost:4000, http://localhost:4000"),
    ],
)
def test_a_page_of_another_origin_is_refused_unless_it_is_allowed(origin: str) -> None:
    assert outcome(OPEN, host="localhost:4000", origin=origin) is OriginNotAllowed
    allowed = WebPages(is_open=True, origins=[origin])
    assert outcome(allowed, host="localhost:4000", origin=origin.upper(), sec_fetch_site="cross-site") is None
    assert outcome(allowed, host="attacker.example", origin=origin) is HostNotAllowed


@pytest.mark.parametrize(
    ("site", "error"),
    [("cross-site", OriginNotAllowed), ("same-site", OriginNotAllowed), ("same-origin", None), ("none", None)],
)
def test_a_browser_that_names_no_origin_tells_the_site(site: str, error: Any) -> None:
    assert outcome(OPEN, host="localhost", sec_fetch_site=site) is error


def test_with_a_master_key_everything_passes() -> None:
    for pages in (NO_WEB_PAGES, WebPages(hosts=["x"], origins=["http://x"])):
        assert outcome(pages, host="attacker.example", origin="null", sec_fetch_site="cross-site") is None
        pages.check_media_type(False)


def test_in_open_mode_administrative_bodies_are_json() -> None:
    OPEN.check_media_type(True)
    with pytest.raises(UnsupportedMediaType, match="Content-Type: application/json"):
        OPEN.check_media_type(False)


def test_without_origins_there_is_no_cors() -> None:
    asked = {b"origin": b"http://x", b"access-control-request-method": b"POST"}
    assert NO_WEB_PAGES.response_headers(asked) == []
    assert NO_WEB_PAGES.preflight(b"OPTIONS", asked) is None


def test_an_allowed_origin_may_read_answers_and_their_headers() -> None:
    pages = WebPages(origins=["https://console.example"])
    found = dict(pages.response_headers({b"origin": b"https://console.example"}))
    assert found[b"access-control-allow-origin"] == b"https://console.example"
    exposed = set(found[b"access-control-expose-headers"].split(b", "))
    assert {b"x-request-id", b"retry-after", b"x-ratelimit-remaining-requests"} <= exposed
    for headers in ({b"origin": b"https://other.example"}, {}):
        # a cache must not give one page's answer to another
        assert pages.response_headers(headers) == [(b"vary", b"Origin")]
    assert (
        dict(WebPages(origins=["*"]).response_headers({b"origin": b"http://x"}))[b"access-control-allow-origin"] == b"*"
    )


def test_with_a_master_key_every_page_reads_errors_unless_some_are_chosen() -> None:
    asked = {b"origin": b"http://x"}
    found = dict(NO_WEB_PAGES.error_headers(asked))
    assert found[b"access-control-allow-origin"] == b"*"
    assert {b"retry-after", b"x-should-retry"} <= set(found[b"access-control-expose-headers"].split(b", "))
    assert NO_WEB_PAGES.error_headers({}) == []
    assert OPEN.error_headers(asked) == []
    chosen = WebPages(origins=["http://y"])
    assert chosen.error_headers(asked) == chosen.response_headers(asked) == [(b"vary", b"Origin")]


def test_a_preflight_of_an_allowed_origin_is_answered() -> None:
    pages = WebPages(origins=["http://x"])
    asked = {b"origin": b"http://x", b"access-control-request-method": b"POST"}
    found = dict(
        pages.preflight(b"OPTIONS", asked | {b"access-control-request-headers": b"authorization,x-mine"}) or []
    )
    assert found[b"access-control-allow-methods"] == b"GET, HEAD, POST, PATCH"
    assert found[b"access-control-allow-headers"] == b"authorization,x-mine"
    assert pages.preflight(b"OPTIONS", asked) is not None
    assert pages.preflight(b"POST", asked) is None
    assert pages.preflight(b"OPTIONS", {b"origin": b"http://x"}) is None
    assert pages.preflight(b"OPTIONS", asked | {b"origin": b"http://y"}) is None


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=20))
def test_any_bytes_are_decided_and_none_is_an_internal_error(host: bytes, origin: bytes, site: bytes) -> None:
    for pages in (OPEN, ANYWHERE, WebPages(is_open=True, hosts=["*.example"], origins=["http://x"])):
        try:
            pages.check({b"host": host, b"origin": origin, b"sec-fetch-site": site})
        except (HostNotAllowed, OriginNotAllowed):
            continue
        assert pages is not OPEN or b"localhost" in host.lower() or b"127." in host or b":" in host


@given(st.ip_addresses() | st.sampled_from([IPv4Address("127.9.9.9"), IPv6Address("::1")]), st.integers(0, 65535))
def test_of_all_addresses_those_of_this_machine_pass(address: IPv4Address | IPv6Address, port: int) -> None:
    host = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    found = mapped or address
    assert (outcome(OPEN, host=host) is None) is (found.is_loopback or found.is_unspecified)
    assert outcome(ANYWHERE, host=host) is None
