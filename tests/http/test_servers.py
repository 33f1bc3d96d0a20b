"""Which configured server a URL belongs to."""

from __future__ import annotations

import attrs
import pytest

from tests.http.upstream_harness import make_server
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.http.client.servers import ServersByURL

PLAIN = make_server(Timeouts(connect=1))
BELOW = attrs.evolve(PLAIN, base_path=b"/a", timeouts=Timeouts(connect=2))
FURTHER = attrs.evolve(PLAIN, base_path=b"/a/b", timeouts=Timeouts(connect=3))
TLS = attrs.evolve(PLAIN, tls=True, host_header=b"vllm", timeouts=Timeouts(connect=4))
SERVERS = ServersByURL([PLAIN, BELOW, FURTHER, TLS])
URL = b"http://192.0.2.7:8000"


@pytest.mark.parametrize(
    ("url", "server", "target"),
    [
        (URL + b"/v1/models?a=%2F&a=+", PLAIN, b"/v1/models?a=%2F&a=+"),
        (URL + b"/", PLAIN, b"/"),
        (URL + b"//double", PLAIN, b"//double"),
        (URL, PLAIN, b""),
        (URL + b"?a/b", PLAIN, b"/?a/b"),
        (URL + b"/a", PLAIN, b"/a"),
        (URL + b"/ab/c", PLAIN, b"/ab/c"),
        (URL + b"/a/v1", BELOW, b"/a/v1"),
        (URL + b"/a/b/v1", FURTHER, b"/a/b/v1"),
        (b"https://vllm/v1", TLS, b"/v1"),
    ],
)
def test_a_url_belongs_to_the_server_whose_base_url_is_the_longest(url: bytes, server: Server, target: bytes) -> None:
    found, rest = SERVERS.find(url)
    assert (found, rest) == (server, target)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        (b"http://192.0.2.7/v1", "192.0.2.7", 80, False),
        (b"https://192.0.2.7:8000/v1", "192.0.2.7", 8000, True),
        (b"http://192.0.2.7:800/v1", "192.0.2.7", 800, False),
        (b"http://192.0.2.7:80001/v1", "192.0.2.7", 80001, False),
        (b"https://[2001:db8::1]/v1", "2001:db8::1", 443, True),
    ],
)
def test_any_other_url_gets_a_server_with_default_timeouts(url: bytes, host: str, port: int, tls: bool) -> None:
    found, target = SERVERS.find(url)
    assert (found.host, found.port, found.tls, found.timeouts) == (host, port, tls, Timeouts())
    assert target == b"/v1"


def test_the_first_of_several_keys_stands_for_its_url() -> None:
    other = attrs.evolve(PLAIN, api_key=Secret("another"))
    assert ServersByURL([other, PLAIN]).find(URL + b"/") == (other, b"/")


def test_a_server_that_is_added_later_is_found_by_a_url_that_was_asked_for_before() -> None:
    servers = ServersByURL()
    assert servers.find(URL + b"/")[0].timeouts == Timeouts()
    servers.add(PLAIN)
    assert servers.find(URL + b"/")[0] is PLAIN


def test_a_long_url_is_found_too() -> None:
    query = b"/v1?" + b"x" * 10_000
    assert SERVERS.find(URL + query) == (PLAIN, query)
