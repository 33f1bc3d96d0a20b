"""Whole processes: a gateway reaches servers by UNIX sockets, by TLS and by several addresses, and ``--probe``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from websockets.sync.client import connect

from benchmarks.free_ports import free_port
from tests.certificates import Authority
from tests.end_to_end.twistd_harness import (
    MASTER_KEY,
    PATIENCE,
    Foreground,
    ask,
    command,
    environment,
    run,
    wait_until,
)

LOOPBACK = "127.0.0.1"
CHAT = '{"model": "m", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
AUTHORITY = Authority()


@contextmanager
def simulator(directory: Path, listen: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a simulated vLLM that listens on an endpoint of Twisted's."""
    with (directory / "simulator.log").open("w+") as log:
        process = subprocess.Popen(
            command("-n", "--pidfile=", "vllm-simulator", f"--listen={listen}", "--model=real-name", *options),
            cwd=directory,
            env=environment(),
            stdout=log,
            stderr=log,
            text=True,
        )
        try:
            wait_until(lambda: "starting on" in (directory / "simulator.log").read_text() or process.poll() is not None)
            assert process.poll() is None, (directory / "simulator.log").read_text()
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE)


def config(directory: Path, *entries: dict[str, object], **settings: object) -> Path:
    """Write a file in which each entry is a server of the model ``m``."""
    models = [{"model_name": "m", "litellm_params": {"model": "hosted_vllm/real-name", **entry}} for entry in entries]
    file = directory / "gateway.yaml"
    file.write_text(yaml.safe_dump({"model_list": models, **settings}))
    return file


def gateway(directory: Path) -> Foreground:
    return Foreground(directory, free_port(), "--config=gateway.yaml", LITELLM_MASTER_KEY=MASTER_KEY)


def chat(served: Foreground) -> tuple[int, str]:
    return ask(served.port, "/vllm/v1/chat/completions", MASTER_KEY, "POST", CHAT)


def begin_session(served: Foreground) -> object:
    """Open a WebSocket; return the type of the server's first message."""
    headers = {"Authorization": f"Bearer {MASTER_KEY}"}
    address = f"ws://{LOOPBACK}:{served.port}/vllm/v1/realtime"
    with connect(address, additional_headers=headers, open_timeout=PATIENCE, proxy=None) as socket:
        return json.loads(socket.recv(PATIENCE))["type"]


def probe(directory: Path) -> tuple[int, list[str]]:
    """Return the exit status of ``--check --probe``, and its last lines: one for each thing that it looked at."""
    ended = run(
        directory,
        "-n",
        "--pidfile=",
        "vllm-passthrough",
        "--config=gateway.yaml",
        "--check",
        "--probe",
        LITELLM_MASTER_KEY=MASTER_KEY,
    )
    assert ended.stderr == ""
    return ended.returncode, [line for line in ended.stdout.splitlines() if line.startswith(("ok ", "FAILED "))]


def test_a_server_at_a_unix_socket_answers(tmp_path: Path) -> None:
    socket = tmp_path / "vllm.sock"
    config(tmp_path, {"api_base": f"unix:{socket}"})
    with simulator(tmp_path, f"unix:{socket}"):
        assert probe(tmp_path) == (
            0,
            [
                f"ok      unix:{socket}: healthy, serves real-name",
                "ok      SQLite, file twisted_vllm.sqlite3: will be made",
            ],
        )
        assert not (tmp_path / "twisted_vllm.sqlite3").exists(), "it changes nothing"
        with gateway(tmp_path) as served:
            status, body = chat(served)
            assert (status, body[-14:]) == (200, "data: [DONE]\n\n")
            assert ask(served.port, "/vllm/v1/models", MASTER_KEY)[0] == 200
            assert begin_session(served) == "session.created"
    assert probe(tmp_path)[1][0] == (f"FAILED  unix:{socket}: it refuses connections: nothing listens on its socket")
    socket.unlink()
    assert probe(tmp_path)[1][0] == f"FAILED  unix:{socket}: there is no socket of this name"


def test_a_server_of_a_private_authority_answers(tmp_path: Path) -> None:
    port = free_port()
    certificate, key = AUTHORITY.sign(LOOPBACK)
    (tmp_path / "server.pem").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key)
    params: dict[str, object] = {"api_base": f"https://{LOOPBACK}:{port}"}
    listen = f"ssl:{port}:interface={LOOPBACK}:privateKey=server.key:certKey=server.pem"
    with simulator(tmp_path, listen):
        config(tmp_path, params)
        status, lines = probe(tmp_path)
        assert status == 1
        assert lines[0].startswith(f"FAILED  https://{LOOPBACK}:{port}: its certificate is of an unknown issuer")
        authority = AUTHORITY.write_own(tmp_path)
        config(tmp_path, {**params, "ssl_ca": str(authority)})
        assert probe(tmp_path)[0] == 0
        with gateway(tmp_path) as served:
            assert chat(served)[0] == 200
            assert begin_session(served) == "session.created"
        config(tmp_path, {"api_base": f"http://{LOOPBACK}:{port}"})
        assert probe(tmp_path)[1][0] == (
            f"FAILED  http://{LOOPBACK}:{port}: it speaks TLS, and its api_base begins with http:// (write https://)"
        )
        config(tmp_path, {**params, "ssl_verify": False})
        with gateway(tmp_path) as served:
            assert chat(served)[0] == 200
        assert "is not checked" in served.stdout


def test_a_reload_reads_the_files_of_servers_again(tmp_path: Path) -> None:
    port = free_port()
    certificate, key = AUTHORITY.sign(LOOPBACK)
    (tmp_path / "server.pem").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key)
    Authority("Somebody").write_own(tmp_path)
    health = {"interval": 0.5, "timeout": 0.5, "rise": 1}
    config(
        tmp_path,
        {"api_base": f"https://{LOOPBACK}:{port}", "ssl_ca": "authority.pem"},
        passthrough={"health": health},
    )
    listen = f"ssl:{port}:interface={LOOPBACK}:privateKey=server.key:certKey=server.pem"
    with simulator(tmp_path, listen), gateway(tmp_path) as served:
        assert chat(served)[0] in (502, 503)
        (tmp_path / "authority.pem").unlink()
        status, body = ask(served.port, "/config/reload", MASTER_KEY, "POST", "{}")
        assert status == 400
        assert "authority.pem cannot be read" in body
        AUTHORITY.write_own(tmp_path)
        served.signal(signal.SIGHUP)
        wait_until(lambda: chat(served)[0] == 200)
    assert "its certificate is of an unknown issuer, CN=Tests' authority" in served.stdout
    assert "The configuration was read again; changed: ssl_ca" in served.stdout


def test_what_is_wrong_is_told_to_the_operator_and_not_to_the_tenant(tmp_path: Path) -> None:
    port = free_port()
    config(tmp_path, {"api_base": f"https://{LOOPBACK}:{port}"}, passthrough={"health": {"interval": 3600}})
    # a server that resets the connection may take away the answer that would tell
    told = re.compile(
        rf"{LOOPBACK}:{port}: it (speaks plain HTTP, or no TLS at all|closed the connection before TLS .*plain HTTP)"
    )
    with simulator(tmp_path, f"tcp:{port}:interface={LOOPBACK}"):
        assert told.search(probe(tmp_path)[1][0])
        with gateway(tmp_path) as served:
            status, body = chat(served)
    assert status in (502, 503)
    assert str(port) not in body
    assert "TLS" not in body
    assert told.search(served.stdout)


def test_a_model_that_its_server_does_not_have_is_told(tmp_path: Path) -> None:
    port = free_port()
    entry = {
        "model_name": "m",
        "litellm_params": {"model": "hosted_vllm/other", "api_base": f"http://{LOOPBACK}:{port}"},
    }
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump({"model_list": [entry]}))
    with simulator(tmp_path, f"tcp:{port}:interface={LOOPBACK}"):
        status, lines = probe(tmp_path)
    assert (status, lines[0]) == (1, f"FAILED  http://{LOOPBACK}:{port}: it does not serve other, but real-name")


def test_files_that_cannot_be_used_keep_the_gateway_from_starting(tmp_path: Path) -> None:
    config(tmp_path, {"api_base": "https://gpu-1.example:8000", "ssl_ca": "missing.pem"})
    ended = run(
        tmp_path, "-n", "--pidfile=", "vllm-passthrough", "--config=gateway.yaml", LITELLM_MASTER_KEY=MASTER_KEY
    )
    assert ended.returncode == 1
    assert (
        "https://gpu-1.example:8000: ssl_ca: the file missing.pem cannot be read (No such file or directory)"
        in ended.stderr
    )


def test_a_database_and_a_redis_that_are_away_are_told(tmp_path: Path) -> None:
    socket, port = tmp_path / "vllm.sock", free_port()
    config(
        tmp_path,
        {"api_base": f"unix:{socket}"},
        general_settings={"database_url": f"postgresql://u:secret@{LOOPBACK}:{port}/d"},
        passthrough={"redis_url": f"redis://:secret@{LOOPBACK}:{port}"},
    )
    with simulator(tmp_path, f"unix:{socket}"):
        status, lines = probe(tmp_path)
    assert status == 1
    assert [line.partition(" ")[0] for line in lines] == ["ok", "FAILED", "FAILED"]
    assert not any("secret" in line for line in lines)
