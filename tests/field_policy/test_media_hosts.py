"""Which URLs a server may fetch: by scheme and host, in every spelling that a URL parser or the C library reads."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.field_policy.media_hosts import MAX_URL, MediaRules, refused_as_private

RULES = MediaRules()


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,AAAA",
        "DATA:,x",
        "",
        "https://upload.wikimedia.org/a/b.png?x=1#y",
        "http://example.com",
        "HTTPS://Example.COM:8443/фото.jpg",
        "https://my_bucket.s3.amazonaws.com/a%20b.png?X-Amz-Signature=1&y=@",
        "https://example.com./x",
        "http://93.184.216.34/x",
        "https://[2606:4700:4700::1111]:443/x",
        "https://xn--bcher-kva.example/",
        "http://example.com/my photo.jpg",
    ],
)
def test_public_urls_are_allowed(url: str) -> None:
    assert RULES.refusal(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "gopher://example.com/",
        "ftp://example.com/a",
        "httpx://example.com/",
        "//example.com/a",
        "example.com/a",
        "/etc/passwd",
        " http://example.com/",
        "http:example.com",
        "http:/example.com",
        "http:///example.com",
        "http://",
    ],
)
def test_other_schemes_and_incomplete_urls_are_refused(url: str) -> None:
    assert RULES.refusal(url) is not None


PRIVATE = [
    *(
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7F.1",
        "017700000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
    ),
    *("10.0.0.1", "10.1", "172.16.0.1", "192.168.1.1", "192.168.257", "169.254.169.254", "0xa9fea9fe", "2852039166"),
    *("100.64.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
    *("127.0.0.1.", "00127.0.0.1", "127.0.0.0x1", "08.8.8.8", "8.8.8", "1.2.3.4.5", "8.8.8.8.", "256.1.1.1"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[fe80::1]", "[fc00::1]", "[fd12::1]", "[ff02::1]", "[fec0::1]"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::10.0.0.1]"),
    *("[2002:7f00:1::]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[2001:db8::1]", "[fe80::5efe:10.0.0.1]"),
    *("[fe80::1%25eth0]", "[fe80::1%eth0]", "[v1.x]", "[::1", "[1::2::3]"),
    *("localhost", "LOCALHOST", "localhost.", "a.localhost", "metadata", "vllm-1", "metadata.google.internal"),
    *("printer.local", "x.svc", "db.svc.cluster.local", "nas.lan", "router.home.arpa", "a..b", ".com", "localhost.."),
    *("user@127.0.0.1", "example.com@127.0.0.1", "example.com:80@127.0.0.1", "a:b@example.com", "@example.com"),
    *(
        "example.com\\@127.0.0.1",
        "127.0.0.1\\.example.com",
        "127.0.0.1%2f.example.com",
        "%31%32%37.0.0.1",
        "127%2e0.0.1",
    ),
    *(
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
        "\u24dbocalhost",
        "bücher.example",
        "exa\tmple.com",
        "127.0.0.1\n",
        "example.com\x00.evil",
    ),
    # letters whose lower or upper case is ASCII
    *("vllm.default.\u017fvc", "x.localho\u017ft", "vllm.\u212aube.svc"),
    *("168.63.129.16", "[::ffff:168.63.129.16]", "192.0.0.192", "[3fff::1]"),
    *("127.0.0.1 ", "example.com:80:80", "example.com:http", "[::1]x", "[::1]:80x", "exam ple.com", "127.0.0.1;a.b"),
]


@pytest.mark.parametrize("host", [each for each in PRIVATE if each != "8.8.8.8."])
def test_private_hosts_and_odd_spellings_are_refused(host: str) -> None:
    for url in (f"http://{host}/x", f"https://{host}", f"http://{host}?a.example.com", f"http://{host}#@example.com/"):
        assert RULES.refusal(url) is not None, url


def test_a_trailing_dot_changes_nothing() -> None:
    assert RULES.refusal("http://8.8.8.8./x") is None


def test_a_long_url_is_refused_unless_it_is_data() -> None:
    assert RULES.refusal("https://example.com/" + "a" * MAX_URL) == f"is longer than {MAX_URL} characters"
    assert RULES.refusal("data:," + "a" * 100_000) is None


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{0}", "0x{0:x}", "0{0:o}", "{1}.{2}", "0x{1:x}.0{2:o}", "{3}"]))
def test_no_spelling_of_an_address_is_more_than_the_address(number: int, form: str) -> None:
    """Whatever the C library reads as a private address is refused."""
    plain = str(IPv4Address(number))
    host = form.format(number, number >> 24, number & 0xFFFFFF, plain)
    resolved = IPv4Address(socket.inet_aton(host))
    assert resolved == IPv4Address(number)
    if not resolved.is_global or resolved.is_multicast:
        assert refused_as_private(host) is not None
    elif host == plain and not resolved.is_reserved:
        assert refused_as_private(host) is None


@given(st.ip_addresses(v=4))
def test_an_address_in_an_ipv6_address_counts(address: IPv4Address) -> None:
    private = refused_as_private(str(address)) is not None
    for text in (
        f"[::ffff:{address}]",
        f"[64:ff9b::{address}]",
        f"[2002:{int(address) >> 16:x}:{int(address) & 65535:x}::1]",
    ):
        assert (refused_as_private(text) is not None) == private, text


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_that_is_not_public_is_refused_in_every_spelling(address: IPv6Address) -> None:
    if int(address) >> 112 == 0x2002:
        # 6to4: the IPv4 address in it decides, whatever this Python says of 2002::/16
        return
    if address.is_private or address.is_multicast or address.is_link_local or address.is_loopback:
        for text in (str(address), address.exploded):
            assert refused_as_private(f"[{text}]") is not None


@given(st.text(max_size=40))
def test_what_is_not_plain_is_refused_and_nothing_raises(text: str) -> None:
    refusal = RULES.refusal(f"http://{text}")
    if refusal is None:
        host = text.partition("/")[0].partition("?")[0].partition("#")[0].rpartition(":")
        plain = (host[0] or host[2]).strip("[]").removesuffix(".")
        assert plain.isascii()
        try:
            assert ip_address(plain).is_global
        except ValueError:
            assert plain.rpartition(".")[2] not in ("localhost", "internal", "local")


def test_allowed_hosts_are_the_only_ones() -> None:
    rules = MediaRules(allowed_hosts=("*.example.com", "10.0.0.7", "minio"))
    assert rules.refusal("https://cdn.example.com/a") is None
    assert rules.refusal("https://CDN.example.com./a") is None
    assert rules.refusal("http://10.0.0.7:9000/a") is None
    assert rules.refusal("http://minio:9000/a") is None
    for url in ("https://example.com/", "https://example.com.evil.org/", "http://10.0.0.8/", "https://other.org/"):
        assert rules.refusal(url) == "names a host that is not among those that the operator allows"
    assert rules.refusal("data:,x") is None


def test_a_lone_star_allows_public_hosts_beside_named_private_ones() -> None:
    rules = MediaRules(allowed_hosts=("*", "minio.internal"))
    assert rules.refusal("https://example.com/") is None
    assert rules.refusal("http://minio.internal/") is None
    assert rules.refusal("http://127.0.0.1/") is not None
    assert rules.refusal("http://other.internal/") is not None


def test_denied_hosts_win_in_every_spelling() -> None:
    rules = MediaRules(allowed_hosts=("*",), denied_hosts=("*.evil.org", "evil.org", "8.8.8.8", "2606:4700::1111"))
    for host in ("evil.org", "EVIL.org.", "a.evil.org", "8.8.8.8", "[::ffff:8.8.8.8]", "[2606:4700:0::1111]"):
        assert rules.refusal(f"https://{host}/") == "names a host that the operator denies", host
    assert rules.refusal("https://fine.org/") is None


def test_schemes_are_the_operator_s() -> None:
    assert MediaRules(schemes=("https",)).refusal("http://example.com") is not None
    assert MediaRules(schemes=("https",)).refusal("data:,x") is not None
    assert MediaRules(schemes=("file", "data")).refusal("file:///srv/media/a.png") is None


def test_whole_private_networks_are_refused() -> None:
    for network in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/4"):
        found = IPv4Network(network)
        for address in (found[0], found[1], found[-1]):
            assert refused_as_private(str(address)) is not None
