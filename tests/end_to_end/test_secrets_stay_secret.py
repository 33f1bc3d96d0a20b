"""No secret that a gateway was given stands in anything that it writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import request_bytes, server_at
from tests.end_to_end.messages import OK
from tests.end_to_end.twistd_harness import MASTER_KEY, run
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.config.secret import Secret
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.resource import PassThroughResource

SERVER_KEY = "servers-own-key-0815"
#: invalid credentials: one in the form of a key, one in another
WRONG_KEYS = ("sk-wrong-key-from-nowhere", "wrong/credential+from=nowhere")
DATABASE_PASSWORD = "pass-phrase:with@signs"

HEADERS = (
    "Authorization", "x-litellm-api-key", "api-key", "x-api-key", "Proxy-Authorization", "Cookie", "User-Agent",
    "Referer", "X-Forwarded-For", "X-Forwarded-Host", "Content-Type", "Connection", "Expect", "Host", "X-Secret",
)  # fmt: skip


def spread(secret: str) -> list[bytes]:
    """Return requests that carry a secret wherever one can stand."""
    found = [request_bytes("GET", "/vllm/v1/models", None, headers={name: secret}) for name in HEADERS]
    found += [request_bytes("GET", "/vllm/v1/models", None, headers={name: f"Bearer {secret}"}) for name in HEADERS]
    offered = f"realtime, openai-insecure-api-key.{secret}"
    for upgrade in ("websocket", "h2c"):
        headers = {"Connection": "Upgrade", "Upgrade": upgrade, "Sec-WebSocket-Protocol": offered}
        found.append(request_bytes("GET", "/vllm/v1/realtime", None, headers=headers))
    found += [
        request_bytes("GET", f"/vllm/v1/models?api_key={secret}", secret),
        request_bytes("GET", f"/key/info?key={secret}", secret),
        request_bytes("GET", f"/nowhere?key={secret}", secret),
        request_bytes("GET", f"/vllm/unknown?key={secret}", secret),
        request_bytes("POST", "/key/delete", secret, body={"keys": [secret]}),
        request_bytes("POST", "/key/generate", secret, body={"models": "not a list", "note": secret}),
        request_bytes("POST", "/vllm/v1/completions", secret, body={"model": "m", "prompt": secret}),
        request_bytes("POST", "/vllm/v1/completions", secret, body=f'{{"model": "m", "x": {secret}'.encode()),
        f"GET http://user:{secret}@gateway/vllm HTTP/1.1\r\nHost: h\r\n\r\n".encode(),
        f"GET /vllm/v1/models HTTP/1.1\r\nHost: h\r\nAuthorization : Bearer {secret}\r\n\r\n".encode(),
        f"{secret}\r\n\r\n".encode(),
    ]
    return found


def misplaced(secret: str) -> list[bytes]:
    """Return requests whose secret stands where the log shows what the client wrote."""
    return [
        request_bytes("GET", f"/vllm/{secret}"),
        request_bytes("GET", f"/{secret}"),
        request_bytes("POST", "/vllm/v1/completions", body={"model": secret}),
        request_bytes("GET", "/vllm/health", headers={"X-Request-Id": secret}),
    ]


@pytest_twisted.ensureDeferred
async def test_no_secret_is_written_anywhere(
    stand_in: Any,
    gateway_to: Any,
    logged_failures: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server_at(server.port, api_key=SERVER_KEY), master_key=Secret(MASTER_KEY))

    async def make_key(**fields: object) -> str:
        answer = await gateway.ask("POST", "/key/generate", MASTER_KEY, body=fields)
        return str(answer.json["key"])

    keys = [await make_key(key_alias="plain"), await make_key(models=["m"]), await make_key()]
    await gateway.ask("POST", "/key/delete", MASTER_KEY, body={"keys": keys[2:]})
    for secret in (*keys, *WRONG_KEYS, MASTER_KEY):
        for raw in spread(secret):
            await exchange(gateway, raw)
    for secret in (*keys, WRONG_KEYS[0], MASTER_KEY, SERVER_KEY):
        for raw in misplaced(secret):
            await exchange(gateway, raw.replace(b"sk-master-0123456789abcdef", MASTER_KEY.encode()))
    for broken in (b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"):
        server.answer = broken
        client = await gateway.send(request_bytes("GET", "/vllm/health", MASTER_KEY))
        await client.until_received(b"\r\n\r\n")
        client.cut()

    def fail_with_every_secret(resource: PassThroughResource, request: GatewayRequest) -> int:
        raise RuntimeError(f"{request.head.headers} {[*keys, MASTER_KEY, SERVER_KEY]}")

    monkeypatch.setattr(PassThroughResource, "render", fail_with_every_secret)
    answer = await gateway.ask("GET", "/vllm/health", MASTER_KEY)
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "RuntimeError" in gateway.log_text()
    assert logged_failures.flush(RuntimeError)

    await gateway.stop()
    shown = capfd.readouterr()
    written = {
        "log": gateway.log_text(),
        "stdout": shown.out,
        "stderr": shown.err,
        "repr": repr([gateway.settings, gateway.service, gateway.service.site, vars(gateway.service)]),
        "answer": answer.body.decode(),
        "database": gateway.database_file.read_bytes().decode("latin-1"),
    }
    secrets = [*keys, *WRONG_KEYS, MASTER_KEY, SERVER_KEY]
    leaks = [(where, secret) for where, text in written.items() for secret in secrets if secret in text]
    assert leaks == []
    hashes = [hash_key(secret) for secret in secrets]
    assert [where for where in ("log", "stdout", "stderr", "answer") for each in hashes if each in written[where]] == []
    assert len(gateway.request_lines()) > 200


async def exchange(gateway: Any, raw: bytes) -> None:
    """Send a request, wait for the beginning of an answer and leave."""
    client = await gateway.send(raw)
    await client.until(lambda: client.received or client.lost is not None)
    client.cut()
    # the gateway's own errors do not tell where the server is
    if b"x-vllm-passthrough-error" in client.received:
        for hidden in (SERVER_KEY.encode(), MASTER_KEY.encode(), b"127.0.0.1"):
            assert hidden not in client.received


CONFIGURATION = """
model_list:
  - model_name: m
    litellm_params: {{model: hosted_vllm/m, api_base: "http://127.0.0.1:9", api_key: {server_key}}}
general_settings:
  master_key: {master_key}
  database_url: postgresql://somebody:{password}@127.0.0.1:{port}/keys
"""


def test_no_secret_of_the_configuration_is_printed(tmp_path: Path) -> None:
    password = DATABASE_PASSWORD.replace("@", "%40").replace(":", "%3A")
    values = {"server_key": SERVER_KEY, "master_key": MASTER_KEY, "password": password, "port": free_port()}
    (tmp_path / "good.yaml").write_text(CONFIGURATION.format(**values))
    (tmp_path / "bad.yaml").write_text(CONFIGURATION.format(**values).replace("api_key:", "api_kei:"))
    (tmp_path / "worse.yaml").write_text(CONFIGURATION.format(**values).replace("master_key:", "master_key: ["))
    listen = f"--listen=tcp:{free_port()}:interface=127.0.0.1"
    commands = [
        ("--pidfile=", "vllm-passthrough", "--config=good.yaml", "--check"),
        ("--pidfile=", "vllm-passthrough", "--config=bad.yaml"),
        ("--pidfile=", "vllm-passthrough", "--config=worse.yaml"),
        ("--pidfile=", "vllm-passthrough", "--config=good.yaml", listen),
    ]
    with ThreadPoolExecutor(len(commands)) as at_once:
        runs = list(at_once.map(lambda arguments: run(tmp_path, "-n", *arguments), commands))
    assert [done.returncode for done in runs] == [0, 1, 1, 1]
    assert "master key and virtual keys" in runs[0].stdout
    assert "did you mean 'api_key'?" in runs[1].stderr
    assert "vllm-passthrough cannot start: The database cannot be used" in runs[3].stderr
    written = "".join(done.stdout + done.stderr for done in runs)
    for secret in (SERVER_KEY, MASTER_KEY, DATABASE_PASSWORD, password):
        assert secret not in written
