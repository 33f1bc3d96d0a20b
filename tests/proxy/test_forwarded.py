"""The ``X-Forwarded-*`` headers for vLLM, and the client's address in the log."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.context import Peer
from twisted_vllm.http.headers import write_header_lines
from twisted_vllm.proxy.authorization_cache import HeaderFormat
from twisted_vllm.proxy.forwarded import ClientAddresses, Network, client_address, client_headers, path_prefix

TRUSTED: tuple[Network, ...] = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
SPOOFED = {
    b"x-forwarded-for": b"1.1.1.1",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-host": b"bank.example",
}


def _headers(
    peer: str,
    headers: dict[bytes, bytes] | None = None,
    trusted: tuple[Network, ...] = TRUSTED,
    secure: bool = False,
    host: bytes | None = b"gw.example",
) -> dict[bytes, bytes]:
    return dict(client_headers(peer, secure, host, headers or {}, trusted))


@pytest.mark.parametrize("trusted", [(), TRUSTED])
def test_forwarded_headers_of_an_untrusted_peer_are_replaced(trusted: tuple[Network, ...]) -> None:
    assert _headers("203.0.113.9", SPOOFED, trusted) == {
        b"X-Forwarded-For": b"203.0.113.9",
        b"X-Forwarded-Proto": b"http",
        b"X-Forwarded-Host": b"gw.example",
    }


def test_a_trusted_peers_chain_is_kept_and_continued() -> None:
    assert _headers("10.1.2.3", SPOOFED) == {
        b"X-Forwarded-For": b"1.1.1.1, 10.1.2.3",
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-Host": b"bank.example",
    }


def test_what_a_trusted_peer_leaves_out_is_filled_in() -> None:
    assert _headers("10.1.2.3", secure=True) == {
        b"X-Forwarded-For": b"10.1.2.3",
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-Host": b"gw.example",
    }


def test_a_request_without_host_gets_no_forwarded_host() -> None:
    assert b"X-Forwarded-Host" not in _headers("192.0.2.1", host=None)


def test_a_unix_socket_peer_is_unknown() -> None:
    assert _headers("", SPOOFED)[b"X-Forwarded-For"] == b"unknown"
    assert client_address("", SPOOFED, TRUSTED) == "unknown"
    assert client_address("", SPOOFED, ()) == "unknown"


@pytest.mark.parametrize(
    ("peer", "chain", "expected"),
    [
        ("203.0.113.9", b"1.1.1.1", "203.0.113.9"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", b"1.1.1.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", b"10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", b"1.1.1.1, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", b"1.1.1.1,,10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("10.0.0.1", b"203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", b"fe80::1%" + b"x" * 9000, "10.0.0.1"),
        ("10.0.0.1", b"fe80::1%eth0", "fe80::1%eth0"),
        ("10.0.0.1", b'"[2001:4860::1]:443"', "2001:4860::1"),
        ("10.0.0.1", b"2001:4860::1, 2001:db8::7", "2001:4860::1"),
        ("::ffff:10.0.0.1", b"203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", b"1.1.1.1", "::ffff:203.0.113.9"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_not_a_proxy(peer: str, chain: bytes, expected: str) -> None:
    assert client_address(peer, {b"x-forwarded-for": chain}, TRUSTED) == expected


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert client_address("10.0.0.1", SPOOFED, ()) == "10.0.0.1"


_ADDRESSES = st.ip_addresses(v=4).map(str)


@given(st.lists(_ADDRESSES, max_size=5), _ADDRESSES.filter(lambda each: not each.startswith("10.")))
def test_nothing_a_client_writes_hides_its_address_behind_a_trusted_proxy(claimed: list[str], client: str) -> None:
    chain = ", ".join([*claimed, client]).encode()
    assert client_address("10.9.9.9", {b"x-forwarded-for": chain}, TRUSTED) == str(ip_address(client))


@pytest.mark.parametrize(
    ("said", "prefix"),
    [
        (b"/llm", b"/llm"),
        (b"/llm/", b"/llm"),
        (b"/outer, /inner/v-1", b"/outer/inner/v-1"),
        (b"/", b""),
        (b"", b""),
        (b"llm", b""),
        (b"//evil.example", b""),
        (b"/a//evil.example", b""),
        (b"/, /evil.example", b"/evil.example"),
        (b"/a/../b", b""),
        (b"/a?b", b""),
        (b"/a b", b""),
        (b"/\\evil.example", b""),
        (b"/" + b"a" * 256, b""),
    ],
)
def test_the_path_that_a_trusted_proxy_cut_off_is_a_plain_path(said: bytes, prefix: bytes) -> None:
    headers = {b"x-forwarded-prefix": said}
    assert path_prefix("10.1.2.3", headers, TRUSTED) == prefix
    assert path_prefix("203.0.113.9", headers, TRUSTED) == b""
    assert path_prefix("10.1.2.3", headers, ()) == b""


PEERS = st.builds(
    Peer, st.sampled_from(["", "10.0.0.1", "10.0.0.2", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"]), st.booleans()
)


@given(PEERS, PEERS, st.sampled_from([(), TRUSTED]), st.sampled_from([{}, SPOOFED]))
def test_headers_that_were_written_for_a_peer_fit_all_of_its_kind(
    one: Peer, other: Peer, trusted: tuple[Network, ...], said: dict[bytes, bytes]
) -> None:
    addresses = ClientAddresses(trusted)
    if addresses.kind_of(one) != addresses.kind_of(other):
        return

    def headers(peer: Peer) -> list[tuple[bytes, bytes]]:
        forwarded = client_headers(peer.host, peer.secure, b"gw.example", said, trusted)
        return [*forwarded, (b"X-Request-Id", b"5f0e")]

    kept = HeaderFormat(b"http://gpu-1", headers(one), one.written)
    assert kept.write(0, b"5f0e", {}, other.written).lines == write_header_lines(headers(other))
