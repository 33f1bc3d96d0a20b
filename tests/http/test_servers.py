"""Which server a URL belongs to that no configured server stands for."""

from __future__ import annotations

import pytest

from twisted_vllm.config.settings import Timeouts
from twisted_vllm.http.client.agent import server_of

URL = b"http://192.0.2.7:8000"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (URL + b"/v1/models?a=%2F&a=+", b"/v1/models?a=%2F&a=+"),
        (URL + b"/", b"/"),
        (URL + b"//double", b"//double"),
        (URL + b"/a;b=1;c?d;e", b"/a;b=1;c?d;e"),
        (URL + b"/a?", b"/a?"),
        (URL, b""),
        (URL + b"?a/b", b"/?a/b"),
        (URL + b"/a#fragment", b"/a"),
        (URL + b"/v1?" + b"x" * 10_000, b"/v1?" + b"x" * 10_000),
    ],
)
def test_the_target_is_what_follows_the_authority(url: bytes, target: bytes) -> None:
    assert server_of(url)[1] == target


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
    found, target = server_of(url)
    assert (found.host, found.port, found.tls, found.timeouts) == (host, port, tls, Timeouts())
    assert target == b"/v1"
