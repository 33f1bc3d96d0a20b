"""How names are resolved, as resolv.conf(5) and hosts(5) say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.urls import ResolverAddress
from twisted_vllm.upstreams.resolv_conf import (
    MAX_DOMAINS,
    MAX_DOTS,
    MAX_SERVERS,
    ResolvConf,
    addresses_in_hosts,
    candidates,
    parse_resolv_conf,
)

POD = """\
# written by the kubelet
search default.svc.cluster.local svc.cluster.local cluster.local
nameserver 10.96.0.10
options ndots:5 timeout:1
"""


def test_the_file_of_a_pod_is_read() -> None:
    assert parse_resolv_conf(POD) == ResolvConf(
        (ResolverAddress("10.96.0.10"),), ("default.svc.cluster.local", "svc.cluster.local", "cluster.local"), 5
    )


def test_without_a_server_it_is_this_machine() -> None:
    assert parse_resolv_conf("nameserver nonsense\nnameserver\n") == ResolvConf((ResolverAddress("127.0.0.1"),))


@pytest.mark.parametrize(
    ("name", "ndots", "expected"),
    [
        ("vllm", 1, ["vllm.a", "vllm.b", "vllm"]),
        ("vllm.default", 1, ["vllm.default", "vllm.default.a", "vllm.default.b"]),
        ("vllm.default", 5, ["vllm.default.a", "vllm.default.b", "vllm.default"]),
        ("vllm.default.", 5, ["vllm.default"]),
    ],
)
def test_a_name_is_tried_as_the_c_library_tries_it(name: str, ndots: int, expected: list[str]) -> None:
    conf = ResolvConf((ResolverAddress("10.96.0.10"),), ("a", "b"), ndots)
    assert list(candidates(name, conf)) == expected


@given(st.text(alphabet=st.sampled_from("nameserver search domain options ndots:0123456789.\n\t #"), max_size=400))
def test_any_text_can_be_read_and_is_bounded(text: str) -> None:
    found = parse_resolv_conf(text)
    assert 1 <= len(found.servers) <= MAX_SERVERS
    assert len(found.search) <= MAX_DOMAINS
    assert 0 <= found.ndots <= MAX_DOTS
    assert all(candidates("x", found))


def test_hosts_are_found_by_every_name_in_any_case() -> None:
    text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n# 10.0.0.9 gpu\n10.0.0.1\tgpu GPU-1.example. gpu\nx gpu\n"
    assert addresses_in_hosts(text, "localhost") == ("127.0.0.1", "::1")
    assert addresses_in_hosts(text, "gpu") == ("10.0.0.1",)
    assert addresses_in_hosts(text, "nobody") == ()
