"""The websockets library's client and server, with a gateway under twistd between them."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as connect_in_loop
from websockets.asyncio.server import ServerConnection as ServerConnectionInLoop
from websockets.asyncio.server import serve as serve_in_loop
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import MASTER_KEY, Foreground, ask
from tests.self_signed import self_signed_pem

#: real seconds after which a test fails
PATIENCE = 30.0

MESSAGES: list[str | bytes] = ["", "short", "ü" * 70_000, b"\x00\xff" * 300_000, *map(str, range(200))]


class Echo:
    """A WebSocket server at ``/v1/realtime``, which sends back what comes and says goodbye when it is asked to.

    Attributes:
        handshakes: the headers of the handshakes that came.
        port: where it listens.
    """

    def __init__(self) -> None:
        self.handshakes: list[list[tuple[str, str]]] = []
        self._server = serve(self._answer, "127.0.0.1", 0)
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _answer(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.handshakes.append(list(connection.request.headers.raw_items()))
        for message in connection:
            if message == "goodbye":
                connection.close(4321, "as you like")
                return
            connection.send(message)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.stop()


@contextmanager
def gateway_before(
    echo: Echo | SecureEcho, directory: Path, *arguments: str, base: str = "http://127.0.0.1", **variables: str
) -> Iterator[Foreground]:
    variables |= {"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": f"{base}:{echo.port}"}
    with Foreground(directory, free_port(), *arguments, **variables) as gateway:
        yield gateway


def url(gateway: Foreground) -> str:
    return f"ws://127.0.0.1:{gateway.port}/vllm/v1/realtime"


def test_messages_of_every_size_come_back_and_the_closing_handshake_passes(echo: Echo, tmp_path: Path) -> None:
    with gateway_before(echo, tmp_path) as gateway:
        bearer = {"Authorization": f"Bearer {MASTER_KEY}"}
        with connect(url(gateway), additional_headers=bearer, open_timeout=PATIENCE) as socket:
            for message in MESSAGES:
                socket.send(message)
            assert [socket.recv(PATIENCE) for _ in MESSAGES] == MESSAGES
            assert socket.ping().wait(PATIENCE)
            socket.send("goodbye")
            with pytest.raises(ConnectionClosedError):
                socket.recv(PATIENCE)
            assert (socket.close_code, socket.close_reason) == (4321, "as you like")
        # another request is answered, and the tunnel has left its line by then
        assert ask(gateway.port, "/health/liveliness")[0] == 200
    [line] = [line for line in map(json.loads, gateway.stdout.splitlines()) if line.get("route") == "/v1/realtime"]
    assert (line["status"], line["outcome"]) == (101, "completed")
    assert line["bytes_in"] > 1000
    assert line["bytes_out"] > 1000


def test_a_browser_s_key_opens_it_and_is_seen_by_nobody_else(echo: Echo, tmp_path: Path) -> None:
    with gateway_before(echo, tmp_path) as gateway:
        _, body = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", "{}")
        key = json.loads(body)["key"]
        offered = [
            Subprotocol(name) for name in ("realtime", f"openai-insecure-api-key.{key}", "openai-beta.realtime-v1")
        ]
        with connect(url(gateway), subprotocols=offered, open_timeout=PATIENCE) as socket:
            assert socket.subprotocol == "realtime"
            socket.send("hello")
            assert socket.recv(PATIENCE) == "hello"
        [headers] = echo.handshakes
        assert key not in str(headers)
        with pytest.raises(InvalidStatus) as refused, connect(url(gateway), open_timeout=PATIENCE):
            pass
        assert refused.value.response.status_code == 401
        assert len(echo.handshakes) == 1
    assert key not in gateway.stdout + gateway.stderr


def echoes(address: str, trust: ssl.SSLContext | None) -> None:
    """Send what an echo must send back, and have it say goodbye.

    In a loop: the client with threads reads and writes one TLS connection at the same time, and at times stands still
    when a session ticket comes while it sends its handshake.
    """

    async def converse() -> None:
        bearer = {"Authorization": f"Bearer {MASTER_KEY}"}
        async with connect_in_loop(
            address, ssl=trust, additional_headers=bearer, open_timeout=PATIENCE, proxy=None
        ) as socket:
            for message in MESSAGES:
                await socket.send(message)
            async with asyncio.timeout(PATIENCE):
                assert [await socket.recv() for _ in MESSAGES] == MESSAGES
                await socket.send("goodbye")
                with pytest.raises(ConnectionClosedError):
                    await socket.recv()
            assert socket.close_code == 4321

    asyncio.run(converse())


def lines_of_tunnels(gateway: Foreground) -> list[dict[str, object]]:
    return [line for line in map(json.loads, gateway.stdout.splitlines()) if line.get("route") == "/v1/realtime"]


def test_it_passes_with_tls_towards_the_client(echo: Echo, tmp_path: Path) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.write_bytes(self_signed_pem())
    port = free_port()
    listen = f"--listen=ssl:{port}:interface=127.0.0.1:privateKey={certificate}:certKey={certificate}"
    with gateway_before(echo, tmp_path, listen) as gateway:
        echoes(f"wss://localhost:{port}/vllm/v1/realtime", ssl.create_default_context(cafile=certificate))
    [line] = lines_of_tunnels(gateway)
    assert (line["status"], line["outcome"]) == (101, "completed")


class SecureEcho:
    """The same behind TLS, which it ends as TLS is to be ended; the one with a thread for each connection does not.

    Attributes:
        handshakes: how many came.
        port: where it listens.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.handshakes = 0
        self.port = 0
        self._context = context
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._listens.wait(PATIENCE)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        async with serve_in_loop(self._answer, "127.0.0.1", 0, ssl=self._context) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._listens.set()
            await self._stopped.wait()

    async def _answer(self, connection: ServerConnectionInLoop) -> None:
        self.handshakes += 1
        async for message in connection:
            if message == "goodbye":
                await connection.close(4321, "as you like")
                return
            await connection.send(message)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(PATIENCE)


@pytest.fixture
def secure_echo(tmp_path: Path) -> Iterator[SecureEcho]:
    certificate = tmp_path / "server.pem"
    certificate.write_bytes(self_signed_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = SecureEcho(context)
    yield server
    server.stop()


def test_it_passes_with_tls_towards_the_server(secure_echo: SecureEcho, tmp_path: Path) -> None:
    trusted = str(tmp_path / "server.pem")
    with gateway_before(secure_echo, tmp_path, base="https://localhost", SSL_CERT_FILE=trusted) as gateway:
        echoes(url(gateway), None)
    [line] = lines_of_tunnels(gateway)
    assert (line["status"], line["outcome"]) == (101, "completed")


def test_it_passes_with_tls_towards_both(secure_echo: SecureEcho, tmp_path: Path) -> None:
    certificate = tmp_path / "server.pem"
    port = free_port()
    listen = f"--listen=ssl:{port}:interface=127.0.0.1:privateKey={certificate}:certKey={certificate}"
    trusted = str(certificate)
    with gateway_before(secure_echo, tmp_path, listen, base="https://localhost", SSL_CERT_FILE=trusted) as gateway:
        echoes(f"wss://localhost:{port}/vllm/v1/realtime", ssl.create_default_context(cafile=certificate))
    [line] = lines_of_tunnels(gateway)
    assert (line["status"], line["outcome"]) == (101, "completed")


def test_a_server_whose_certificate_nobody_vouches_for_gets_no_tunnel(secure_echo: SecureEcho, tmp_path: Path) -> None:
    with gateway_before(secure_echo, tmp_path, base="https://localhost") as gateway:
        bearer = {"Authorization": f"Bearer {MASTER_KEY}"}
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(url(gateway), additional_headers=bearer, open_timeout=PATIENCE),
        ):
            pass
        assert refused.value.response.status_code == 502
    assert secure_echo.handshakes == 0


def test_sigterm_closes_it_and_the_gateway_ends_at_once(echo: Echo, tmp_path: Path) -> None:
    with gateway_before(echo, tmp_path) as gateway:
        bearer = {"Authorization": f"Bearer {MASTER_KEY}"}
        with connect(url(gateway), additional_headers=bearer, open_timeout=PATIENCE) as socket:
            socket.send("hello")
            assert socket.recv(PATIENCE) == "hello"
            gateway.terminate()
            with pytest.raises(ConnectionClosedError):
                socket.recv(PATIENCE)
    [drained] = [line for line in gateway.stdout.splitlines() if "Drained in" in line]
    assert float(json.loads(drained)["message"].split()[2]) < 5
