"""What was decided of a head holds for the next request with the same head, until anything changes."""

from __future__ import annotations

import attrs
import pytest

from tests.proxy.gateway_fakes import FakePeer, server
from twisted_vllm.api_routes import classify
from twisted_vllm.auth.records import MASTER, Principal
from twisted_vllm.http.headers import write_header_lines
from twisted_vllm.proxy.admission import Entry
from twisted_vllm.proxy.authorization_cache import CachedAuthorization
from twisted_vllm.proxy.paths import target
from twisted_vllm.usage.records import Payer
from twisted_vllm.usage.references import refer

TENANT = Principal(kind="key", name="team-a", expires=100.0)
HEADERS = [(b"Host", b"gpu-1:8000"), (b"X-A", b"Content-Length: "), (b"Accept", b"*/*")]
PEER = FakePeer("192.0.2.1")
URL = b"http://gpu-1:8000/v1/completions"


def entry(principal: Principal = TENANT) -> Entry:
    where = target(b"/v1/completions", True)
    return Entry(principal, classify(b"POST", where.path), where, False, False, refer(Payer()))


def passage(principal: Principal = TENANT) -> CachedAuthorization:
    return CachedAuthorization(entry(principal), 7, PEER)  # type: ignore[arg-type]  # a peer is a host and whether it is TLS


@pytest.mark.parametrize(
    ("changes", "now", "peer", "holds"),
    [
        (7, 99.9, PEER, True),
        (7, 99.9, FakePeer("192.0.2.1"), True),
        (8, 99.9, PEER, False),
        (7, 100.0, PEER, False),
        (7, 99.9, FakePeer("192.0.2.2"), False),
        (7, 99.9, FakePeer("192.0.2.1", secure=True), False),
    ],
)
def test_it_holds_until_a_key_changes_or_expires_or_somebody_else_asks(
    changes: int, now: float, peer: FakePeer, holds: bool
) -> None:
    assert passage().holds(changes, now, peer) is holds  # type: ignore[arg-type]  # likewise


def test_who_does_not_expire_is_let_through_for_ever() -> None:
    assert passage(MASTER).holds(7, 1e12, PEER)  # type: ignore[arg-type]  # likewise
    assert not passage(attrs.evolve(TENANT, expires=0.0)).holds(7, 0.0, PEER)  # type: ignore[arg-type]  # likewise


@pytest.mark.parametrize("length", [0, 9, 12_345])
def test_kept_headers_are_written_as_fresh_ones_with_their_own_length_and_id(length: int) -> None:
    kept = passage()
    tail = [(b"X-Forwarded-For", b"192.0.2.1"), (b"X-Request-Id", b"")]
    kept.keep(server(), URL, [*HEADERS, (b"Content-Length", b""), *tail])
    fresh = [*HEADERS, (b"Content-Length", b"%d" % length), tail[0], (b"X-Request-Id", b"5f0e")]
    url, headers = kept.write(server(), length, b"5f0e")
    assert (url, headers.lines) == (URL, write_header_lines(fresh))


def test_kept_headers_without_a_body_get_no_length() -> None:
    kept = passage()
    kept.keep(server(), URL, [*HEADERS, (b"X-Request-Id", b"")])
    _, headers = kept.write(server(), 0, b"5f0e")
    assert headers.lines == write_header_lines([*HEADERS, (b"X-Request-Id", b"5f0e")])


def test_each_server_has_its_own() -> None:
    kept = passage()
    for name in ("a:1", "b:2"):
        kept.keep(server(name), name.encode(), [(b"X-Request-Id", b"")])
    assert kept.write(server("a:1"), 0, b"x")[0] == b"a:1"
    assert kept.write(server("b:2"), 0, b"x")[0] == b"b:2"
