"""SIGHUP and ``POST /config/reload``, to real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.threads import deferToThread

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST, Wire, request_bytes
from tests.end_to_end.messages import STREAM
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, Foreground, answers, ask, run, wait_until
from tests.self_signed import self_signed_pem

STREAMS, RELOADS = 200, 50
LOG = "gateway.log"


class Reloadable(Foreground):
    """A gateway with a configuration file that tests write again."""

    def __init__(self, directory: Path, settings: str, *arguments: str, **variables: str) -> None:
        self.directory = directory
        self.write(settings)
        super().__init__(directory, free_port(), "--config=gateway.yaml", *arguments, **variables)

    def write(self, settings: str) -> None:
        (self.directory / "gateway.yaml").write_text(settings)

    def reload(self, key: str = MASTER_KEY) -> tuple[int, Any]:
        status, body = ask(self.port, "/config/reload", key, "POST", "{}")
        return status, json.loads(body)

    @property
    def log(self) -> str:
        return (self.directory / LOG).read_text()

    def hang_up(self) -> str:
        """Send SIGHUP; return what the log says until the reload is over."""
        before = len(self.log)
        self.signal(signal.SIGHUP)
        wait_until(lambda: re.search("was read again|cannot be used|not read again", self.log[before:]))
        return self.log[before:]


def settings(*, base: str = "http://127.0.0.1:9", key: str = MASTER_KEY, models: str = "m", **passthrough: Any) -> str:
    """Return a file with entries for these models, and members of ``passthrough``."""
    params = {"model": "hosted_vllm/simulated-model", "api_base": base}
    blocks = {
        "general_settings": {"master_key": key},
        "model_list": [{"model_name": name, "litellm_params": params} for name in models.split()],
        "passthrough": {"log": {"file": LOG}, "health": {"interval": None}, **passthrough},
    }
    return json.dumps(blocks, indent=2)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Reloadable]:
    with Reloadable(tmp_path, settings()) as found:
        yield found


def test_what_changed_and_what_needs_a_restart_is_answered_logged_and_audited(gateway: Reloadable) -> None:
    assert gateway.reload() == (200, {"status": "reloaded", "changed": [], "restart_needed": [], "warnings": []})
    gateway.write(settings(models="m n", limits={"max_reports": 7, "max_header_count": 90}, drain_delay=0.5))
    status, answer = gateway.reload()
    assert (status, answer["status"], answer["warnings"]) == (200, "reloaded", [])
    assert answer["changed"] == ["passthrough.limits.max_header_count", "passthrough.drain_delay", "model_list.n"]
    assert answer["restart_needed"] == ["passthrough.limits.max_reports"]
    wait_until(lambda: "A restart is needed for: passthrough.limits.max_reports" in gateway.log)
    assert "changed: passthrough.limits.max_header_count, passthrough.drain_delay, model_list.n" in gateway.log
    # what is in effect is compared, so a setting that waits for a restart is named again
    assert gateway.reload()[1]["restart_needed"] == ["passthrough.limits.max_reports"]
    [newest, *_] = json.loads(ask(gateway.port, "/audit/list?action=config/reload&page_size=2", MASTER_KEY)[1])[
        "audit_logs"
    ][1:]
    assert (newest["actor"], newest["object_type"]) == ("master", "configuration")
    assert newest["after"]["restart_needed"] == ["passthrough.limits.max_reports"]


def test_an_invalid_file_changes_nothing_and_all_its_problems_are_told(gateway: Reloadable) -> None:
    gateway.write(settings(models="n", key="sk-never-to-be-seen", drain_timeot=3, limits={"max_body_bytes": "x"}))
    status, answer = gateway.reload()
    assert (status, answer["error"]["code"]) == (400, "invalid_configuration")
    for text in (answer["error"]["message"], gateway.hang_up()):
        assert "The configuration cannot be used; nothing was changed:" in text
        assert "passthrough.drain_timeot: is not a known setting" in text
        assert "passthrough.limits.max_body_bytes: must be" in text
        assert "sk-never-to-be-seen" not in text
    assert ask(gateway.port, "/key/list", MASTER_KEY)[0] == 200
    chat = json.dumps({"model": "m", "messages": []})
    assert ask(gateway.port, "/vllm/v1/chat/completions", MASTER_KEY, "POST", chat)[0] in (502, 503)


def test_a_file_that_is_gone_changes_nothing(gateway: Reloadable) -> None:
    (gateway.directory / "gateway.yaml").unlink()
    assert "gateway.yaml: cannot be read: No such file or directory" in gateway.hang_up()
    assert answers(gateway.port)


def test_another_master_key_holds_from_the_next_request_on(gateway: Reloadable) -> None:
    first = b"GET /vllm/metrics HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %b\r\n\r\n"
    with socket.create_connection((HOST, gateway.port)) as client:

        def status(key: str) -> int:
            client.sendall(first % key.encode())
            answer = client.recv(65_536)
            return int(answer.split(b" ")[1])

        assert status(MASTER_KEY) == status(MASTER_KEY) == 502
        gateway.write(settings(key="sk-the-other-master-key"))
        # the ids of entries are made with it
        assert gateway.reload()[1]["changed"] == ["general_settings.master_key", "model_list.m"]
        # also on the same connection, with a head that was authorized before
        assert (status(MASTER_KEY), status("sk-the-other-master-key")) == (401, 502)
    assert gateway.reload()[0] == 401
    assert gateway.reload("sk-the-other-master-key")[0] == 200
    assert "sk-the-other-master-key" not in gateway.log


def test_models_come_and_go(gateway: Reloadable) -> None:
    def status(model: str) -> int:
        body = json.dumps({"model": model, "messages": []})
        return ask(gateway.port, "/vllm/v1/chat/completions", MASTER_KEY, "POST", body)[0]

    assert (status("m") != 404, status("n")) == (True, 404)
    gateway.write(settings(models="n"))
    assert gateway.reload()[1]["changed"] == ["model_list.m", "model_list.n"]
    assert (status("m"), status("n") != 404) == (404, True)


def test_the_log_has_another_level_format_and_file(gateway: Reloadable) -> None:
    gateway.write(settings(log={"file": "other.log", "format": "text", "level": "warn"}))
    assert gateway.reload()[0] == 200
    assert answers(gateway.port)
    gateway.write("not a mapping")
    other = gateway.directory / "other.log"
    assert gateway.reload()[0] == 400
    wait_until(lambda: "cannot be used" in other.read_text())
    assert other.read_text().startswith("20")
    assert "/health/readiness" not in other.read_text()
    wait_until(lambda: "/health/readiness" in gateway.log)
    gateway.write(settings(log={"file": "missing/other.log"}))
    assert "passthrough.log.file: cannot be opened" in gateway.reload()[1]["error"]["message"]


def peer_certificate(port: int) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((HOST, port)) as plain, context.wrap_socket(plain) as client:
        found = client.getpeercert(binary_form=True)
        assert found is not None
        return found


@pytest.mark.parametrize("rundir", [(), ("--rundir=elsewhere",)])
def test_new_handshakes_have_the_new_certificate_and_open_connections_stay(
    tmp_path: Path, rundir: tuple[str, ...]
) -> None:
    port = free_port()
    (tmp_path / "elsewhere").mkdir()
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(self_signed_pem())

    class Elsewhere(Reloadable):
        twistd_options = rundir

    listen = f"--listen=ssl:{port}:interface=127.0.0.1:privateKey=server.pem:certKey=server.pem"
    with Elsewhere(tmp_path, settings(), listen) as gateway:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((HOST, port)) as raw, context.wrap_socket(raw) as client:
            before = client.getpeercert(binary_form=True)
            certificate.write_bytes(self_signed_pem())
            assert peer_certificate(port) == before
            assert gateway.reload()[1]["changed"] == ["passthrough.listen"]
            after = peer_certificate(port)
            assert after != before
            client.sendall(b"GET /health/liveliness HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        certificate.write_text("no certificate")
        status, answer = gateway.reload()
        assert (status, "server.pem" in answer["error"]["message"]) == (400, True)
        assert peer_certificate(port) == after


def test_a_daemon_reads_its_configuration_again(tmp_path: Path) -> None:
    port, pid_file = free_port(), tmp_path / "gateway.pid"
    (tmp_path / "gateway.yaml").write_text(settings())
    options = ["--config=gateway.yaml", f"--listen=tcp:{port}:interface=127.0.0.1"]
    done = run(tmp_path, "--pidfile=gateway.pid", "vllm-passthrough", *options)
    assert (done.returncode, done.stderr) == (0, "")
    process_id = int(pid_file.read_text())
    try:
        # at once: it may not have started
        os.kill(process_id, signal.SIGHUP)
        wait_until(lambda: answers(port))
        wait_until(lambda: "was read again; changed: nothing" in (tmp_path / LOG).read_text())
        (tmp_path / "gateway.yaml").write_text(settings(models="n"))
        os.kill(process_id, signal.SIGHUP)
        wait_until(lambda: "changed: model_list.m, model_list.n" in (tmp_path / LOG).read_text())
    finally:
        os.kill(process_id, signal.SIGTERM)
        wait_until(lambda: not pid_file.exists())


def all_of(waiting: Any) -> Deferred[Any]:
    return gatherResults(list(waiting), consumeErrors=True)


async def connect(reactor: Any, port: int) -> Wire:
    client = Wire(reactor)
    await connectProtocol(TCP4ClientEndpoint(reactor, HOST, port), client)
    return client


def chat(key: str) -> bytes:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "go on"}]}
    return request_bytes("POST", "/vllm/v1/chat/completions", key, body=body)


@pytest_twisted.ensureDeferred
async def test_fifty_reloads_drop_no_stream_no_connection_and_no_count(
    stand_in: Any, reactor: Any, tmp_path: Path
) -> None:
    server = stand_in()

    def written(number: int) -> str:
        return settings(
            base=f"http://{HOST}:{server.port}",
            models="m extra" if number % 2 else "m",
            limits={"max_concurrent_requests": STREAMS + number, "max_header_count": 100 + number},
            timeouts={"idle": 100 + number},
            default_prices={"output_cost_per_token": number + 1},
            drain_timeout=0,
        )

    gateway = Reloadable(tmp_path, written(0))
    await deferToThread(gateway.__enter__)
    try:
        made = json.dumps({"max_parallel_requests": STREAMS, "rpm_limit": STREAMS + 1})
        _, body = await deferToThread(ask, gateway.port, "/key/generate", MASTER_KEY, "POST", made)
        key = json.loads(body)["key"]
        clients: list[Wire] = []
        servers: list[Wire] = []
        for _ in range(STREAMS):
            clients.append(await connect(reactor, gateway.port))
            clients[-1].send(chat(key))
            servers.append(await server.connection(len(servers)))
            await servers[-1].until_received(b"go on")
            servers[-1].send(STREAM)
        await all_of(client.until_received(b"abc") for client in clients)
        answers_of_reloads: list[Any] = []
        for number in range(1, RELOADS + 1):
            gateway.write(written(number))
            if number % 2:
                gateway.signal(signal.SIGHUP)
            # one reload after the other: this is the next one
            answers_of_reloads.append(await deferToThread(gateway.reload))
        # the key has as many requests in flight as it may
        refused = await connect(reactor, gateway.port)
        refused.send(chat(key))
        await refused.until_received(b"}}")
        for each in servers:
            each.send(b"3\r\ndef\r\n0\r\n\r\n")
        await all_of(client.until_received(b"0\r\n\r\n") for client in clients)
        # the connections of clients go on, and one request is left of this minute
        server.respond = lambda wire: wire.send(STREAM + b"0\r\n\r\n")
        clients[0].send(chat(key))
        await clients[0].until(lambda: clients[0].received.count(b"0\r\n\r\n") == 2)
        clients[1].send(chat(key))
        await clients[1].until_received(b"}}")
        assert [client for client in clients if client.lost is not None] == []
    finally:
        await deferToThread(gateway.__exit__)
    assert b"parallel" in refused.received
    assert b"HTTP/1.1 429" in clients[1].received
    assert [status for status, _ in answers_of_reloads] == [200] * RELOADS
    assert any("passthrough.timeouts.idle" in answer["changed"] for _, answer in answers_of_reloads)
    lines = [json.loads(line) for line in gateway.log.splitlines() if '"route":"/v1/chat/completions"' in line]
    assert [line["outcome"] for line in lines if line["status"] == 200] == ["completed"] * (STREAMS + 1)


def test_systemd_is_told_when_the_gateway_serves_reloads_and_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        with Reloadable(tmp_path, settings(), NOTIFY_SOCKET=str(tmp_path / "notify")) as gateway:
            assert manager.recv(100) == b"READY=1"
            assert gateway.reload()[0] == 200
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]+", manager.recv(100))
            assert manager.recv(100) == b"READY=1"
            gateway.write("nothing: usable")
            assert gateway.reload()[0] == 400
            assert manager.recv(100).startswith(b"RELOADING=1\n")
            assert manager.recv(100) == b"READY=1"
            gateway.terminate()
        assert manager.recv(100) == b"STOPPING=1"
