"""Entries whose servers DNS finds, and the settings of that."""

from __future__ import annotations

import pytest

from tests.config.config_harness import Loader, Refusal, somewhere
from tests.config.test_model_list import entry, listed
from twisted_vllm.config.describe import describe
from twisted_vllm.config.problems import Rejected
from twisted_vllm.config.settings import DiscoverySettings
from twisted_vllm.config.urls import ResolverAddress, resolver_address


def test_an_entry_says_how_its_servers_are_found(load_text: Loader) -> None:
    settings = load_text(
        listed(
            entry(api_base="http://vllm.default.svc:8000", discovery="dns"),
            entry(api_base="http://_http._tcp.vllm.default.svc", discovery="srv"),
            entry(api_base="http://gpu-1"),
        )
    )
    assert [model.discovery for model in settings.models] == ["dns", "srv", None]
    assert settings.models[0].server.address is None
    lines = [line for line in describe(settings) if line.startswith("model:")]
    assert "servers by dns" in lines[0] and "servers by" not in lines[2]


@pytest.mark.parametrize(
    ("base", "discovery", "complaint"),
    [
        ("http://10.0.0.1:8000", "dns", "litellm_params.discovery: finds servers by a name"),
        ("http://[fd00::1]", "dns", "litellm_params.discovery: finds servers by a name"),
        ("http://vllm.default.svc", "srv", "litellm_params.api_base: must name a service with discovery: srv"),
        ("http://_http._tcp.vllm.svc:8000", "srv", "litellm_params.api_base: must not have a port"),
        ("http://vllm.svc", "dsn", "litellm_params.discovery: must be one of dns, srv; did you mean 'dns'?"),
    ],
)
def test_what_cannot_be_found_is_refused_in_one_line(
    problems_of: Refusal, base: str, discovery: str, complaint: str
) -> None:
    [line] = problems_of(listed(entry(api_base=base, discovery=discovery)))
    assert line.startswith(f"model_list[0].{complaint}")


def test_the_settings_of_discovery(load_text: Loader) -> None:
    text = "passthrough: {discovery: {interval: 5, timeout: 1, resolver: '127.0.0.1:5353', max_servers: 10}}"
    settings = load_text(text, {"HOSTED_VLLM_API_BASE": "http://gpu"})
    assert settings.discovery == DiscoverySettings(5.0, 1.0, ResolverAddress("127.0.0.1", 5353), 10)
    assert any(line.split() == ["dns", "server:", "127.0.0.1,", "port", "5353"] for line in describe(settings))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.96.0.10", "10.96.0.10", 53),
        ("127.0.0.1:5353", "127.0.0.1", 5353),
        ("fd00::a", "fd00::a", 53),
        ("[fd00::a]", "fd00::a", 53),
        ("[fd00::a]:5353", "fd00::a", 5353),
    ],
)
def test_the_address_of_a_dns_server(text: str, host: str, port: int) -> None:
    assert resolver_address(text, somewhere()) == ResolverAddress(host, port)


@pytest.mark.parametrize(
    "text", ["dns.example.com", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:", "[::1", "udp://10.0.0.1"]
)
def test_what_is_no_address_of_a_dns_server_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="must be the address of a DNS server"):
        resolver_address(text, somewhere())
