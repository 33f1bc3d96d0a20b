"""``vllm-passthrough health``: where it asks, and what it says of the answer."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.self_signed import self_signed_pem
from twisted_vllm.cli.health import address_of
from twisted_vllm.cli.main import main


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("tcp:4000", "http://127.0.0.1:4000"),
        ("tcp:port=4000", "http://127.0.0.1:4000"),
        ("tcp:4000:interface=0.0.0.0", "http://127.0.0.1:4000"),
        ("tcp:4000:interface=localhost:backlog=50", "http://127.0.0.1:4000"),
        ("tcp:4000:interface=10.0.0.7", "http://10.0.0.7:4000"),
        (r"tcp:4000:interface=\:\:", "http://[::1]:4000"),
        ("tcp6:4000", "http://[::1]:4000"),
        ("ssl:4443:privateKey=/k.pem:certKey=/c.pem", "https://127.0.0.1:4443"),
        ("unix:/run/gateway.sock:mode=660", "unix:/run/gateway.sock"),
        ("unix:address=/run/gateway.sock", "unix:/run/gateway.sock"),
    ],
)
def test_it_asks_where_the_gateway_listens(endpoint: str, url: str) -> None:
    assert address_of(endpoint) == url


def ask(*arguments: str, listen: str | None = None) -> Result:
    environment = {"VLLM_PASSTHROUGH_LISTEN": listen, "VLLM_PASSTHROUGH_URL": None}
    return CliRunner().invoke(main, ["health", *arguments], prog_name="vllm-passthrough", env=environment)


@contextmanager
def answering(status: int, body: object, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve one answer to all requests, as a gateway would; return the port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps(body).encode()
            asked = self.path == "/health/readiness" and "Authorization" not in self.headers
            self.send_response(status if asked else 500)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_gateway_that_takes_requests_is_healthy() -> None:
    with answering(200, {"status": "healthy"}) as port:
        asked = ask(listen=f"tcp:{port}")
        assert (asked.exit_code, asked.output) == (0, "healthy\n")
        assert ask("--url", f"http://127.0.0.1:{port}/").exit_code == 0


def test_one_that_drains_says_why() -> None:
    error = {"message": "The gateway is shutting down.", "code": "draining"}
    with answering(503, {"status": "unhealthy", "error": error}) as port:
        asked = ask(listen=f"tcp:{port}")
    assert asked.exit_code == 1
    assert "The gateway is shutting down" in asked.output


def test_its_own_certificate_needs_no_name_but_another_s_does(tmp_path: Path) -> None:
    (tmp_path / "gateway.pem").write_bytes(self_signed_pem())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "gateway.pem")
    with answering(200, {"status": "healthy"}, tls) as port:
        assert ask(listen=f"ssl:{port}").exit_code == 0
        refused = ask("--url", f"https://127.0.0.1:{port}")
    assert refused.exit_code == 3
    assert "is not trusted" in refused.output


def test_nobody_there_is_another_status_than_unhealthy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        asked = ask(listen=f"tcp:{free.getsockname()[1]}")
    assert asked.exit_code == 3
    assert "nothing listens at" in asked.output


def test_an_endpoint_without_an_address_needs_one() -> None:
    asked = ask(listen="systemd:domain=INET:index=0")
    assert asked.exit_code == 2
    assert "name one with --url" in asked.output
