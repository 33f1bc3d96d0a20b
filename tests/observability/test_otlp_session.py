"""What an exporter sends over HTTP, and what it never sends."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests  # noqa: TID251 - the client of the official exporters

from tests.otlp_receiver import OtlpReceiver, http_receiver
from tests.self_signed import self_signed_pem
from twisted_vllm.observability.otlp_session import MOST_READ, OwnSession, keep_messages


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with http_receiver() as found:
        yield found


def post(session: OwnSession, receiver: OtlpReceiver, **headers: str) -> requests.Response:
    with session:
        return session.request("POST", f"{receiver.url}/v1/traces", headers=headers, data=b"", timeout=5)


def test_only_the_destination_s_own_headers_are_sent(receiver: OtlpReceiver) -> None:
    given = {"x-of-the-environment": "secret", "content-type": "application/x-protobuf"}
    assert post(OwnSession({"X-Key": "own"}), receiver, **given).status_code == 200
    [export] = receiver.exports
    assert export.headers["x-key"] == "own"
    assert export.headers["content-type"] == "application/x-protobuf"
    assert "x-of-the-environment" not in export.headers


def test_no_credentials_of_the_machine_are_sent(
    receiver: OtlpReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    post(OwnSession({}), receiver)
    assert "authorization" not in receiver.exports[0].headers


def test_a_redirect_is_a_failure(receiver: OtlpReceiver) -> None:
    receiver.status = 302
    session = OwnSession({})
    with pytest.raises(requests.RequestException, match="redirects"):
        post(session, receiver)
    assert session.status == 302


def test_of_an_endless_answer_little_is_read(receiver: OtlpReceiver) -> None:
    receiver.answer = b"x" * 1_000_000
    session = OwnSession({})
    assert len(post(session, receiver).content) == len(session.answer) == MOST_READ


class Quiet(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_a_certificate_is_checked_with_the_authority_that_the_settings_name(tmp_path: Path) -> None:
    certificate = tmp_path / "both.pem"
    certificate.write_bytes(self_signed_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the refused handshake
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"https://localhost:{server.server_address[1]}/v1/traces"
    try:
        with OwnSession({}, ca_file=str(certificate)) as session:
            assert session.request("POST", url, data=b"", timeout=5).status_code == 200
        with OwnSession({}) as session, pytest.raises(requests.RequestException, match="certificate"):
            session.request("POST", url, data=b"", timeout=5)
    finally:
        server.shutdown()
        server.server_close()


def test_the_exporters_messages_are_kept_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    kept = keep_messages()
    logging.getLogger("opentelemetry.exporter.test").error("no %s\n%s", "luck", "x" * 1_000)
    said, arguments = kept.take()
    assert said.startswith("no luck x")
    assert len(said) <= 300
    assert arguments == ("luck", "x" * 1_000)
    assert kept.take() == ("", ())
    assert capsys.readouterr().err == ""


def test_a_gateway_without_traces_loads_nothing_of_opentelemetry() -> None:
    script = (
        "import sys, twisted_vllm.app.wiring, twisted_vllm.config.load\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'grpc', 'google.protobuf'))"
        " or name.startswith('twisted_vllm.observability.tracing.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
