"""A real twistd: its models of file, database and DNS, through reloads and a restart."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.messages import whole
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, ask, wait_until
from tests.upstreams.dns_server import DnsServer

SERVICE = "vllm.default.svc"
SRV_NAME = f"_http._tcp.{SERVICE}"
SERVER_KEY = "key-of-the-server-0123456789"


@pytest.fixture
def dns(reactor: Any) -> Iterator[DnsServer]:
    server = DnsServer(reactor)
    yield server
    pytest_twisted.blockon(ensureDeferred(server.stop()))


def settings(dns: DnsServer, *models: str) -> str:
    entries = [
        f"{{model_name: {model}, litellm_params: {{model: hosted_vllm/m, api_base: 'http://{SRV_NAME}', "
        "discovery: srv}}"
        for model in models
    ]
    listed = "".join(f"  - {each}\n" for each in entries)
    return (
        f"model_list:\n{listed}"
        "passthrough:\n"
        f"  discovery: {{interval: 0.2, resolver: '{HOST}:{dns.address.port}'}}\n"
        "  health: {interval: null}\n"
        "router_settings: {routing_strategy: round-robin, num_retries: 0}\n"
    )


def complete(port: int, model: str) -> str:
    """Return the body of an answer, or its status if it is an error."""
    status, body = ask(port, "/vllm/v1/completions", MASTER_KEY, "POST", json.dumps({"model": model}))
    return body if status == 200 else str(status)


def answers(port: int, model: str, *bodies: str) -> bool:
    """Tell whether these, and no others, answer for a model."""
    return {complete(port, model) for _ in range(6)} == set(bodies)


@pytest_twisted.ensureDeferred
async def test_models_of_the_file_the_database_and_dns_come_and_go(
    tmp_path: Path, dns: DnsServer, stand_in: Any
) -> None:
    default, one, two = stand_in(whole(b"default")), stand_in(whole(b"one")), stand_in(whole(b"two"))
    stored = stand_in(whole(b"stored"))
    dns.services(SRV_NAME, (0, 1, one.port, "pod." + SERVICE), ttl=1)
    dns.addresses("pod." + SERVICE, HOST, ttl=1)

    def change(path: str, body: object) -> None:
        status, answer = ask(gateway.port, path, MASTER_KEY, "POST", json.dumps(body))
        assert status == 200, answer

    def serve() -> None:
        wait_until(lambda: answers(gateway.port, "found", "one"))
        assert answers(gateway.port, "added", "default")
        params = {"model": "hosted_vllm/m", "api_base": f"http://{HOST}:{stored.port}", "api_key": SERVER_KEY}
        change("/model/new", {"model_name": "added", "litellm_params": params, "model_info": {"id": "one"}})
        assert answers(gateway.port, "added", "stored")
        # an entry that joins a model of the file
        change("/model/new", {"model_name": "found", "litellm_params": params, "model_info": {"id": "two"}})
        assert answers(gateway.port, "found", "one", "stored")

    def follow() -> None:
        wait_until(lambda: answers(gateway.port, "found", "one", "two", "stored"))

    def reload() -> None:
        (tmp_path / "gateway.yaml").write_text(settings(dns, "found", "another"))
        gateway.signal(signal.SIGHUP)
        wait_until(lambda: answers(gateway.port, "another", "one", "two"))
        assert answers(gateway.port, "added", "stored")

    def after_restart() -> None:
        assert answers(again.port, "added", "stored")
        wait_until(lambda: answers(again.port, "found", "one", "two", "stored"))
        ask(again.port, "/model/delete", MASTER_KEY, "POST", '{"id": "one"}')
        assert answers(again.port, "added", "default")

    gateway = Configured(tmp_path, default.port, settings(dns, "found"))
    await deferToThread(gateway.__enter__)
    try:
        await deferToThread(serve)
        dns.services(SRV_NAME, (0, 1, one.port, "pod." + SERVICE), (0, 1, two.port, "pod." + SERVICE), ttl=1)
        await deferToThread(follow)
        await deferToThread(reload)
    finally:
        await deferToThread(gateway.__exit__)
    again = Configured(tmp_path, default.port, settings(dns, "found"))
    await deferToThread(again.__enter__)
    try:
        await deferToThread(after_restart)
    finally:
        await deferToThread(again.__exit__)
    for process in (gateway, again):
        assert SERVER_KEY not in process.stdout + process.stderr
        assert "Traceback" not in process.stdout + process.stderr
    assert f"Authorization: Bearer {SERVER_KEY}".encode() in stored.received
