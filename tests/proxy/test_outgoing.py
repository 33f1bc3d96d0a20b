"""The headers of the request to the server."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy.gateway_fakes import HeaderPairs, server
from twisted_vllm.auth.records import MASTER, PREFLIGHT, Principal
from twisted_vllm.auth.steering_headers import OPERATORS_HEADERS
from twisted_vllm.proxy.upstream_headers import outgoing_headers

TENANT = Principal(kind="key", name="team-a")
FORWARDED = [(b"X-Forwarded-For", b"192.0.2.1"), (b"X-Forwarded-Proto", b"https")]

#: headers that are never forwarded, for any caller
NEVER = (
    "Connection", "Keep-Alive", "Proxy-Connection", "TE", "Transfer-Encoding", "Upgrade", "Proxy-Authenticate",
    "Proxy-Authorization", "HTTP2-Settings", "Authorization", "x-litellm-api-key", "api-key", "x-api-key", "Host",
    "Content-Length", "Expect", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host",
    "Sec-WebSocket-Protocol",
)  # fmt: skip


def outgoing(headers: HeaderPairs, **changes: Any) -> HeaderPairs:
    """Return the headers between ``Host`` and ``X-Request-Id``, with `changes` to the arguments."""
    values: dict[str, Any] = {
        "server": server(),
        "principal": TENANT,
        "request_id": b"5f0e",
        "forwarded": [],
        "framing": None,
        "connection": None,
        "expects_continue": False,
    }
    names = [name.lower() for name, _ in headers]
    return outgoing_headers(headers, names, **{**values, **changes})


def test_the_client_s_headers_stay_unchanged_between_the_gateway_s() -> None:
    sent = [(b"ACCEPT", b"*/*"), (b"x-a", b"2"), (b"X-A", b"1"), (b"Cookie", b"a=b"), (b"X-Empty", b"")]
    found = outgoing(sent, framing=(b"Content-Length", b"3"), forwarded=FORWARDED)
    assert found == [
        (b"Host", b"gpu-1:8000"),
        *sent,
        (b"Content-Length", b"3"),
        *FORWARDED,
        (b"X-Request-Id", b"5f0e"),
    ]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", NEVER)
def test_hop_by_hop_credential_and_rewritten_headers_are_dropped(name: str, trusted: bool) -> None:
    for spelling in (name, name.lower(), name.upper()):
        found = outgoing([(spelling.encode(), b"the client's")], principal=MASTER if trusted else TENANT)
        assert b"the client's" not in dict(found).values()


@pytest.mark.parametrize("name", sorted(OPERATORS_HEADERS))
def test_the_operator_s_headers_are_taken_from_administrators_alone(name: bytes) -> None:
    sent = [(name.upper(), b"0")]
    assert sent[0] not in outgoing(sent)
    assert sent[0] in outgoing(sent, principal=MASTER)


def test_headers_that_connection_nominates_are_dropped() -> None:
    sent = [(b"X-Hop", b"1"), (b"x-hop", b"2"), (b"X-Hop-Not", b"3"), (b"X-Other", b"4")]
    found = outgoing(sent, connection=b"close , X-HOP,x-other")
    assert found[1:-1] == [(b"X-Hop-Not", b"3")]


def test_connection_cannot_remove_the_gateway_s_own_headers() -> None:
    found = outgoing(
        [],
        connection=b"host, content-length, x-request-id, x-forwarded-for, authorization",
        framing=(b"Content-Length", b"3"),
        forwarded=FORWARDED,
        server=server(api_key="servers-own"),
    )
    assert {name for name, _ in found} == {
        b"Host", b"Content-Length", b"Authorization", b"X-Request-Id", b"X-Forwarded-For", b"X-Forwarded-Proto",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["content-type", "content-encoding", "origin", "access-control-request-method", "cookie", "max-forwards"]
)
def test_connection_cannot_remove_what_says_how_the_request_is_read(name: str) -> None:
    sent = [(name.encode(), b"1"), (b"X-Hop", b"2")]
    assert outgoing(sent, connection=b"x-hop, " + name.encode())[1:-1] == sent[:1]


def _twins(name: str) -> list[bytes]:
    return [name.replace("-", odd).encode() for odd in "_.~!" if "-" in name]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", [name for name in (*NEVER, "Content-Type") if "-" in name])
def test_what_some_servers_take_for_a_dropped_or_judged_header_is_dropped(name: str, trusted: bool) -> None:
    """WSGI servers read ``Content_Length`` as ``Content-Length``, and ``X_Api_Key`` holds the client's key."""
    sent = [(twin, b"the client's") for twin in _twins(name)] + [(b"X_Own", b"1"), (b"X-A", b"2")]
    found = outgoing(sent, principal=MASTER if trusted else TENANT)
    assert found[1:-1] == sent[-2:]


@pytest.mark.parametrize("name", sorted(name.decode() for name in OPERATORS_HEADERS))
def test_no_spelling_of_an_operator_s_header_gets_through_from_a_tenant(name: str) -> None:
    sent = [(twin, b"0") for twin in _twins(name)]
    assert outgoing(sent)[1:-1] == []
    granted = attrs.evolve(TENANT, granted_headers=frozenset({name.encode()}))
    assert outgoing(sent, principal=granted)[1:-1] == sent


def test_a_nominated_header_is_dropped_in_every_spelling() -> None:
    assert outgoing([(b"X_Hop", b"1"), (b"X-Hop", b"2")], connection=b"x-hop")[1:-1] == []


def test_a_preflight_does_not_get_the_server_s_key() -> None:
    asked = server(api_key="servers-own")
    assert (b"Authorization", b"Bearer servers-own") not in outgoing([], principal=PREFLIGHT, server=asked)
    assert (b"Authorization", b"Bearer servers-own") in outgoing([], server=asked)


def test_the_server_s_own_key_is_the_only_credential() -> None:
    sent = [(b"Authorization", b"Bearer sk-client"), (b"api-key", b"sk-client")]
    found = outgoing(sent, server=server(api_key="servers-own"))
    assert found[1:-1] == [(b"Authorization", b"Bearer servers-own")]
    assert outgoing(sent)[1:-1] == []


def test_the_client_s_wait_for_100_continue_is_passed_on_only_where_it_waits() -> None:
    sent = [(b"Expect", b"100-continue")]
    assert (b"Expect", b"100-continue") in outgoing(sent, expects_continue=True)
    assert outgoing(sent)[1:-1] == []


TOKENS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20).map(str.encode)
NAMES = TOKENS | st.sampled_from([name.encode() for name in NEVER]) | st.sampled_from(sorted(OPERATORS_HEADERS))


@given(st.lists(st.tuples(NAMES, st.binary(max_size=5))), st.booleans())
def test_each_header_comes_once_from_the_gateway_or_as_often_as_the_client_sent_it(
    sent: HeaderPairs, trusted: bool
) -> None:
    found = outgoing(
        sent, principal=MASTER if trusted else TENANT, framing=(b"Content-Length", b"3"), forwarded=FORWARDED
    )
    own = [(b"Host", b"gpu-1:8000"), (b"Content-Length", b"3"), (b"X-Request-Id", b"5f0e"), *FORWARDED]
    kept = [pair for pair in found if pair not in own]
    assert kept == [
        pair
        for pair in sent
        if pair[0].lower() not in {name.lower().encode() for name in NEVER}
        and (trusted or pair[0].lower() not in OPERATORS_HEADERS)
    ]
    assert len(found) == len(kept) + len(own)


def test_a_key_sets_the_headers_that_it_was_granted_and_no_others() -> None:
    sent = [(b"X-Session-Id", b"a"), (b"X-Data-Parallel-Rank", b"1")]
    granted = attrs.evolve(TENANT, granted_headers=frozenset({b"x-session-id"}))
    assert outgoing(sent, principal=granted)[1:-1] == [(b"X-Session-Id", b"a")]


@pytest.mark.parametrize("connection", [None, b"x-vllm-priority"])
def test_the_key_s_priority_replaces_the_client_s(connection: bytes | None) -> None:
    ranked = attrs.evolve(TENANT, priority=-7)
    for sent in ([], [(b"x-vllm-priority", b"0")]):
        assert outgoing(sent, principal=ranked, connection=connection)[1:-1] == [(b"X-Vllm-Priority", b"-7")]


def test_a_key_that_may_set_its_priority_has_its_own_as_default() -> None:
    ranked = attrs.evolve(TENANT, priority=0, granted_headers=frozenset({b"x-vllm-priority"}))
    assert outgoing([(b"x-vllm-priority", b"9")], principal=ranked)[1:-1] == [(b"x-vllm-priority", b"9")]
    assert outgoing([], principal=ranked)[1:-1] == [(b"X-Vllm-Priority", b"0")]
    # a header that is taken back by `Connection` was not said
    found = outgoing([(b"x-vllm-priority", b"9")], principal=ranked, connection=b"x-vllm-priority")
    assert found[1:-1] == [(b"X-Vllm-Priority", b"0")]


@pytest.mark.parametrize("name", ["Content-Type", "Origin", "Access-Control-Request-Method"])
def test_a_header_by_which_the_gateway_judges_cannot_be_nominated(name: str) -> None:
    sent = [(name.encode(), b"a")]
    assert outgoing(sent, connection=name.lower().encode())[1:-1] == sent


def test_an_adapter_that_was_judged_cannot_be_nominated() -> None:
    name = b"x-amzn-sagemaker-adapter-identifier"
    granted = attrs.evolve(TENANT, granted_headers=frozenset((name,)))
    assert outgoing([(name, b"a")], principal=granted, connection=name)[1:-1] == [(name, b"a")]
    assert outgoing([(name, b"a")], connection=name)[1:-1] == []
