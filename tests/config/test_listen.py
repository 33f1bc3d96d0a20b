"""Where to listen: usual mistakes get the right spelling, and loopback is what Twisted binds to it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor

from tests.config.config_harness import Loader, Refusal, somewhere
from twisted_vllm.config.listen import (
    BACKLOG,
    DEFAULT_LISTEN,
    below,
    endpoint,
    is_loopback,
    is_tls,
    same_place,
    split,
    with_backlog,
)
from twisted_vllm.config.problems import Rejected


@pytest.mark.parametrize(
    "text",
    [
        DEFAULT_LISTEN,
        "tcp:4000:interface=127.8.9.10",
        "tcp:4000:127.0.0.1",
        "tcp:port=4000:interface=localhost",
        r"tcp:4000:interface=\:\:1",
        r"tcp6:4000:interface=\:\:1",
        "ssl:4000:interface=127.0.0.1:privateKey=k.pem",
        "haproxy:tcp:4000:interface=127.0.0.1",
        "unix:/run/gateway.sock",
    ],
)
def test_what_only_this_machine_reaches_is_loopback(text: str) -> None:
    assert is_loopback(text)


@pytest.mark.parametrize(
    "text",
    [
        "tcp:4000",
        "tcp:4000:interface=",
        "tcp:4000:interface=0.0.0.0",
        "tcp:4000:interface=192.168.1.5",
        r"tcp:4000:interface=\:\:",
        "tcp:4000:interface=127.0.0.1.example.com",
        "tcp:4000:interface=127.0.0.1:interface=0.0.0.0",
        "tcp6:4000",
        "tls:certs:443",
        "ssl:443:privateKey=k.pem",
        "systemd:domain=INET:index=0",
        "haproxy:tcp:4000",
        "haproxy:",
        "other:127.0.0.1",
        "",
        "\\",
    ],
)
def test_whatever_others_may_reach_is_not(text: str) -> None:
    assert not is_loopback(text)


@given(
    st.sampled_from(["0.0.0.0", "", "127.0.0.1", "127.3.2.1", "::1", "::", "10.1.1.1", "localhost"]),
    st.booleans(),
    st.permutations(["backlog=5", "interface"]),
)
def test_loopback_is_what_twisted_binds_to_loopback(interface: str, positional: bool, order: list[str]) -> None:
    quoted = quoteStringArgument(interface)
    arguments = [f"interface={quoted}" if piece == "interface" else piece for piece in order]
    text = f"tcp:4000:{quoted}:backlog=5" if positional else ":".join(["tcp:4000", *arguments])
    reactor = MemoryReactor()
    serverFromString(reactor, text).listen(Factory())
    bound = reactor.tcpServers[0][3]
    reaches_only_us = bound == "localhost" or (bound != "" and ip_address(bound).is_loopback)
    assert is_loopback(text) == reaches_only_us


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("4000", "tcp:4000:interface=127.0.0.1"),
        ("localhost:4000", "tcp:4000:interface=127.0.0.1"),
        ("127.0.0.1:4000", "tcp:4000:interface=127.0.0.1"),
        ("0.0.0.0:4000", "tcp:4000:interface=0.0.0.0"),
        (":4000", "tcp:4000:interface=0.0.0.0"),
        ("*:4000", "tcp:4000:interface=0.0.0.0"),
        ("http://0.0.0.0:4000/", "tcp:4000:interface=0.0.0.0"),
        ("gateway.example.com:80", "tcp:80:interface=gateway.example.com"),
        ("[::1]:4000", r"tcp:4000:interface=\:\:1"),
    ],
)
def test_a_port_or_a_host_and_port_gets_the_right_spelling(
    problems_of: Refusal, load_text: Loader, written: str, meant: str
) -> None:
    assert problems_of(listen=[written]) == [f"--listen: must be a Twisted endpoint (write {meant})"]
    environ = {"HOSTED_VLLM_API_BASE": "http://gpu", "LITELLM_MASTER_KEY": "sk-1"}
    assert load_text("", environ, listen=[meant]).listen == (meant,)


def test_a_bare_port_in_the_file_gets_the_right_spelling(problems_of: Refusal) -> None:
    expected = "must be a Twisted endpoint (write tcp:4000:interface=127.0.0.1)"
    assert problems_of("passthrough: {listen: 4000}") == [f"passthrough.listen: {expected}"]
    assert problems_of("passthrough: {listen: ['unix:/x', 4000]}") == [f"passthrough.listen[1]: {expected}"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tcp:0.0.0.0:4000", "needs a port"),
        ("tcp:", "needs a port"),
        ("tcp:99999", "needs a port"),
        ("tls:certs:https", "needs a port"),
        ("tcp:4000:interface=::1", "need a backslash each"),
        ("tcp", "must be a Twisted endpoint"),
        ("/run/gateway.sock", "must be a Twisted endpoint"),
        ("", "must not be empty"),
        ("tcp:4000\n", "control character"),
        (None, "must be text"),
        (True, "must be text"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Rejected) as refusal:
        endpoint(text, somewhere())
    assert reason in str(refusal.value)


@given(st.one_of(st.text(), st.text(st.sampled_from("tcp:=\\1270.[]unixsl"))))
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    is_loopback(text)
    try:
        assert endpoint(text, somewhere()) == text
    except Rejected as refusal:
        assert refusal.message


@pytest.mark.parametrize(
    "text",
    [
        "tcp:4000",
        "tcp:port=4000:interface=127.0.0.1",
        "tcp:4000:127.0.0.1",
        r"tcp:4000:interface=\:\:1",
        "tcp6:4000",
        "haproxy:tcp:4000",
        "unix:/run/gateway.sock",
        "unix:/run/gateway.sock:660",
    ],
)
def test_a_burst_of_clients_finds_room_to_wait_in(text: str) -> None:
    reactor = MemoryReactor()
    serverFromString(reactor, with_backlog(text)).listen(Factory())
    listening = [*reactor.tcpServers, *reactor.unixServers]
    assert [call[2] for call in listening] == [BACKLOG]


@pytest.mark.parametrize(
    "text",
    [
        "tcp:4000:backlog=10",
        "tcp:4000:127.0.0.1:10",
        "tcp6:4000:10",
        "unix:/run/gateway.sock:660:10",
        "haproxy:tcp:4000:backlog=10",
    ],
)
def test_how_many_may_wait_can_be_said(text: str) -> None:
    reactor = MemoryReactor()
    serverFromString(reactor, with_backlog(text)).listen(Factory())
    listening = [*reactor.tcpServers, *reactor.unixServers]
    assert [call[2] for call in listening] == [10]


@pytest.mark.parametrize("text", ["systemd:domain=INET:index=0", "other:x", ""])
def test_an_endpoint_of_another_type_stays_as_it_is(text: str) -> None:
    assert with_backlog(text) == text


FILES = st.text("ab/.:=\\\\ ", min_size=1, max_size=8)


@given(st.sampled_from(["privateKey", "certKey", "extraCertChain", "dhParameters"]), FILES, FILES)
def test_files_of_a_certificate_are_no_part_of_the_place(name: str, one: str, other: str) -> None:
    first, second = (f"ssl:443:interface=127.0.0.1:{name}={quoteStringArgument(file)}" for file in (one, other))
    assert same_place(first, second)
    assert not same_place(first, second.replace("443", "444"))
    assert not same_place(first, f"haproxy:{second}")


# Twisted's own quoting leaves = as it is
@given(FILES.filter(lambda file: "=" not in file))
def test_files_of_a_certificate_are_found_below_a_directory(file: str) -> None:
    moved = below(f"haproxy:ssl:443:{quoteStringArgument(file)}:/absolute.pem", "/start")
    assert moved.startswith("haproxy:ssl:")
    assert is_tls(moved)
    found = split(moved.removeprefix("haproxy:"))[2]
    wanted = file if file.startswith("/") else f"/start/{file}"
    assert (found["port"], found["privateKey"], found["certKey"]) == ("443", wanted, "/absolute.pem")


def test_the_default_file_of_a_certificate_is_below_it_too() -> None:
    assert below("ssl:443", "/start") == "ssl:privateKey=/start/server.pem:port=443"


@pytest.mark.parametrize("text", ["tcp:443", "unix:/run/x.sock", "haproxy:tcp:443"])
def test_other_endpoints_speak_no_tls(text: str) -> None:
    assert not is_tls(text)
    assert same_place(text, text)
    assert not same_place(text, f"{text}4")
