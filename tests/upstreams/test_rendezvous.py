"""Rendezvous hashing: keys are shared out by weight, and a server that leaves moves its own keys only."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.upstreams.rendezvous import key_hash, score

weights = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(0.01, 100.0), min_size=2, max_size=8)


def owner(key: bytes, servers: dict[str, float]) -> str:
    hashed = key_hash(key)
    return max(servers, key=lambda name: score(hashed, key_hash(name.encode()), servers[name]))


@given(weights, st.lists(st.binary(max_size=20), min_size=1, max_size=30))
def test_only_the_keys_of_a_server_that_leaves_move(servers: dict[str, float], keys: list[bytes]) -> None:
    gone = next(iter(servers))
    rest = {name: weight for name, weight in servers.items() if name != gone}
    for key in keys:
        before = owner(key, servers)
        if before != gone:
            assert owner(key, rest) == before


@given(weights, st.lists(st.binary(max_size=20), min_size=1, max_size=30))
def test_a_server_with_more_weight_takes_keys_and_loses_none(servers: dict[str, float], keys: list[bytes]) -> None:
    heavier = next(iter(servers))
    changed = servers | {heavier: servers[heavier] * 3}
    for key in keys:
        assert owner(key, changed) in (owner(key, servers), heavier)


def test_keys_are_shared_out_by_weight() -> None:
    servers = {"http://a": 1.0, "http://b": 2.0, "http://c": 5.0}
    counts = Counter(owner(b"key-%d" % number, servers) for number in range(8_000))
    for name, weight in servers.items():
        assert abs(counts[name] - 1_000 * weight) < 200


def test_all_processes_agree() -> None:
    assert key_hash(b"a session") == 0x3C22C39F885983CE
