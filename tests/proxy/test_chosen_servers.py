"""Who may choose the server of a request, and by which names."""

from __future__ import annotations

import attrs
import pytest

from tests.proxy.gateway_fakes import server
from twisted_vllm.auth.records import ANONYMOUS, MASTER, PREFLIGHT, Principal
from twisted_vllm.errors import ServerNotAllowed, ServerNotFound
from twisted_vllm.proxy.chosen_servers import chosen_server

SERVERS = {name: server(name) for name in ("gpu-1:8000", "gpu-2:8000")}
KEY = Principal(kind="key", name="k", allowed_routes=("/sleep", "management"))
GRANTED = attrs.evolve(KEY, granted_headers=frozenset((b"x-vllm-passthrough-server",)))


@pytest.mark.parametrize("principal", [MASTER, ANONYMOUS, GRANTED])
def test_whoever_may_choose_gets_the_server_of_that_name(principal: Principal) -> None:
    headers = {b"x-vllm-passthrough-server": b" gpu-2:8000 "}
    assert chosen_server(principal, headers, SERVERS) is SERVERS["gpu-2:8000"]
    assert chosen_server(principal, {}, SERVERS) is None


@pytest.mark.parametrize("principal", [KEY, PREFLIGHT])
def test_others_are_refused_whatever_the_name(principal: Principal) -> None:
    assert chosen_server(principal, {}, SERVERS) is None
    for name in (b"gpu-2:8000", b"unknown", b""):
        with pytest.raises(ServerNotAllowed) as refused:
            chosen_server(principal, {b"x-vllm-passthrough-server": name}, SERVERS)
        assert "gpu" not in refused.value.message


def test_an_unknown_name_tells_administrators_which_there_are() -> None:
    for principal, named in ((MASTER, True), (GRANTED, False)):
        with pytest.raises(ServerNotFound) as refused:
            chosen_server(principal, {b"x-vllm-passthrough-server": b"gpu-3" + b"x" * 1000}, SERVERS)
        assert ("gpu-1:8000, gpu-2:8000" in refused.value.message) is named
        assert len(refused.value.message) < 250


def test_a_large_fleet_is_not_listed_whole() -> None:
    fleet = {f"s{index}:80": server(f"s{index}:80") for index in range(1000)}
    with pytest.raises(ServerNotFound) as refused:
        chosen_server(MASTER, {b"x-vllm-passthrough-server": b"x"}, fleet)
    assert len(refused.value.message) < 300
