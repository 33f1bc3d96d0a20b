"""``api_base``: every spelling of a server comes to one form, and what is no server's URL is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.config_harness import somewhere
from twisted_vllm.config.problems import Rejected
from twisted_vllm.config.urls import Address, api_base


def parse(text: str) -> Address:
    return api_base(text, somewhere())


def unix(socket: str, base_path: str = "") -> Address:
    return Address(False, "localhost", 80, base_path, socket)


@pytest.mark.parametrize(
    ("text", "expected", "name", "host_header"),
    [
        ("http://gpu", Address(False, "gpu", 80, ""), "gpu:80", b"gpu"),
        ("https://gpu", Address(True, "gpu", 443, ""), "gpu:443", b"gpu"),
        ("https://gpu:443", Address(True, "gpu", 443, ""), "gpu:443", b"gpu"),
        ("https://gpu:80", Address(True, "gpu", 80, ""), "gpu:80", b"gpu:80"),
        ("http://gpu:8000/v1", Address(False, "gpu", 8000, ""), "gpu:8000", b"gpu:8000"),
        ("http://gpu:8000//", Address(False, "gpu", 8000, ""), "gpu:8000", b"gpu:8000"),
        ("http://gpu/a/v1/", Address(False, "gpu", 80, "/a"), "gpu:80/a", b"gpu"),
        ("http://gpu/a%2Fb", Address(False, "gpu", 80, "/a%2Fb"), "gpu:80/a%2Fb", b"gpu"),
        ("http://gpu/xv1", Address(False, "gpu", 80, "/xv1"), "gpu:80/xv1", b"gpu"),
        ("http://GPU_1.local", Address(False, "gpu_1.local", 80, ""), "gpu_1.local:80", b"gpu_1.local"),
        ("http://[::1]:8000", Address(False, "::1", 8000, ""), "[::1]:8000", b"[::1]:8000"),
        ("unix:/run/vllm.sock", unix("/run/vllm.sock"), "unix:/run/vllm.sock", b"localhost"),
        ("UNIX:///run/vllm.sock/v1/", unix("/run/vllm.sock"), "unix:/run/vllm.sock", b"localhost"),
        ("unix:/run/vllm.sock:/v1", unix("/run/vllm.sock"), "unix:/run/vllm.sock", b"localhost"),
        ("unix:/run/vllm.sock:/a/v1", unix("/run/vllm.sock", "/a"), "unix:/run/vllm.sock:/a", b"localhost"),
        ("http://[0:0::1]", Address(False, "::1", 80, ""), "[::1]:80", b"[::1]"),
        ("http://127.0.0.1:8000", Address(False, "127.0.0.1", 8000, ""), "127.0.0.1:8000", b"127.0.0.1:8000"),
    ],
)
def test_a_base_comes_to_one_form(text: str, expected: Address, name: str, host_header: bytes) -> None:
    found = parse(text)
    assert (found, found.name, found.host_header) == (expected, name, host_header)
    assert parse(found.url) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gpu:8000", "must begin with http"),
        ("ftp://gpu", "must begin with http"),
        ("//gpu", "must begin with http"),
        ("unix:run/vllm.sock", "the whole path of the socket"),
        ("unix:", "the whole path of the socket"),
        ("unix:/run/../vllm.sock", "the whole path of the socket"),
        ("unix:/run//vllm.sock", "the whole path of the socket"),
        ("unix:/run/vllm%2Esock", "the whole path of the socket"),
        ("unix:/" + "a" * 107, "more than 107 bytes"),
        ("unix:/run/vllm.sock:v1", "empty segments"),
        ("http+unix://%2Frun%2Fvllm.sock", "write unix:/run/vllm.sock"),
        ("http://unix:/run/vllm.sock", "write unix:/run/vllm.sock"),
        ("http://", "has no host"),
        ("http:///v1", "has no host"),
        ("http://:8000", "has no host"),
        ("http://gpu:0", "port from 1"),
        ("http://gpu:99999", "valid host and port"),
        ("http://gpu:port", "valid host and port"),
        ("http://user@gpu", "user name or a password"),
        ("http://user:secret@gpu", "user name or a password"),
        ("http://gpu?a=b", "query or a fragment"),
        ("http://gpu/?", "query or a fragment"),
        ("http://gpu/#a", "query or a fragment"),
        ("http://gpu/a b", "outside ASCII"),
        ("http://gpu\\@evil", "outside ASCII"),
        ("http://gpü", "outside ASCII"),
        ("http://-gpu", "not a valid name"),
        ("http://g%70u", "not a valid name"),
        ("http://[::1", "valid host and port"),
        ("http://[fe80::1%25eth0]", "zone"),
        ("http://gpu/../x", "dot segments"),
        ("http://gpu/%2e%2E/x", "dot segments"),
        ("http://gpu/a//b", "empty segments"),
        ("http://gpu/%zz", "percent-encoding"),
    ],
)
def test_what_is_not_a_servers_url_is_refused_without_repeating_it(text: str, reason: str) -> None:
    with pytest.raises(Rejected) as refusal:
        parse(text)
    assert reason in str(refusal.value)
    assert "secret" not in str(refusal.value)


@given(
    st.one_of(
        st.text(),
        st.text(st.sampled_from("htps:/@[]%.?#v1gu0\\ ")),
        st.from_regex(r"unix:(//)?(/[a-z.v1]{0,4}){0,4}/?(:(/[a-z.v1]{0,4}){0,3}/?)?", fullmatch=True),
        st.from_regex(r"https?://[a-z:0-9\[\].%@_-]{0,20}(/[a-z0-9.%]{0,5}){0,4}", fullmatch=True),
    )
)
def test_any_text_is_refused_or_has_a_form_that_stays(text: str) -> None:
    try:
        found = parse(text)
    except Rejected as refusal:
        assert refusal.message
        return
    assert parse(found.url) == found
    assert parse(found.url + "/v1/") == found
    assert 1 <= found.port <= 65535
    assert not found.base_path.endswith("/")
    assert found.host_header.isascii()
