"""What ``--check --probe`` finds out of those who are told of requests, and that it tells them nothing."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from threading import Thread

import pytest

from benchmarks.free_ports import free_port
from tests.certificates import Authority
from tests.config.config_harness import BASE
from twisted_vllm.app.probe_receivers import Receiver, Unusable, connect, receivers_of
from twisted_vllm.config.load import load

LOOPBACK = "127.0.0.1"

Find = Callable[..., list[Receiver]]


class Server(ThreadingHTTPServer):
    """Answers each request with a status, and keeps what came."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.requests: list[tuple[str, str, str, bytes]] = []
        super().__init__((LOOPBACK, 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests.append((self.command, self.path, self.headers.get("authorization", ""), body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    do_HEAD = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(status: int) -> Iterator[Server]:
    with Server(status) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def listening() -> Iterator[tuple[int, socket.socket]]:
    with socket.create_server((LOOPBACK, 0)) as server:
        yield server.getsockname()[1], server


@pytest.fixture
def receivers(tmp_path: Path) -> Find:
    def find(text: str, **environ: str) -> list[Receiver]:
        file = tmp_path / "gateway.yaml"
        file.write_text(dedent(text), encoding="utf-8")
        return list(receivers_of(load(file=str(file), environ=BASE | environ)))

    return find


def found(receiver: Receiver) -> tuple[bool, str]:
    try:
        return True, receiver.look()
    except Unusable as error:
        return False, str(error)


def test_nobody_is_asked_where_nobody_is_told(receivers: Find) -> None:
    assert receivers("") == []


@pytest.mark.parametrize(
    ("status", "usable", "words"),
    [
        (200, True, "takes an export without content"),
        (422, True, "answers; it refuses an export without content (422)"),
        (401, False, "it answers 401: it does not accept the key (headers)"),
        (404, False, "it answers 404: it takes no OTLP at this path"),
        (500, False, "it answered 500"),
        (307, False, "it redirects elsewhere"),
    ],
)
def test_a_receiver_of_otlp_gets_an_export_without_content(
    receivers: Find, status: int, usable: bool, words: str
) -> None:
    pytest.importorskip("requests")
    with answering(status) as server:
        origin = f"http://{LOOPBACK}:{server.server_port}"
        (receiver,) = receivers(
            f"""
            passthrough:
              tracing:
                destinations:
                  - {{name: tempo, endpoint: "{origin}/v1/traces", headers: {{authorization: Bearer hush-hush}}}}
            """
        )
        assert receiver.subject == "traces to tempo"
        assert found(receiver) == (usable, f"{origin} {words}" if usable else words)
        assert server.requests == [("POST", "/v1/traces", "Bearer hush-hush", b"")]


def test_metrics_and_logs_by_otlp_are_looked_at(receivers: Find) -> None:
    pytest.importorskip("requests")
    with answering(200) as server:
        origin = f"http://{LOOPBACK}:{server.server_port}"
        asked = receivers(
            "",
            OTEL_METRICS_EXPORTER="otlp",
            OTEL_LOGS_EXPORTER="otlp",
            OTEL_TRACES_EXPORTER="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=origin,
        )
        assert {each.subject: found(each)[0] for each in asked} == {"sink otlp": True, "metrics by OTLP": True}
        assert {(path, body) for _, path, _, body in server.requests} == {("/v1/logs", b""), ("/v1/metrics", b"")}


def test_webhooks_are_connected_to_and_get_nothing(receivers: Find) -> None:
    with answering(200) as server:
        origin = f"http://{LOOPBACK}:{server.server_port}"
        asked = receivers(
            f"""
            general_settings: {{alerting: [slack]}}
            passthrough: {{sinks: [{{name: hook, type: webhook, url: "{origin}/in/hush-hush-hush-hush"}}]}}
            """,
            SLACK_WEBHOOK_URL=f"{origin}/services/hush-hush-hush-hush",
        )
        assert [(each.subject, *found(each)) for each in asked] == [
            ("sink hook", True, f"{origin} accepts connections; nothing was sent"),
            (f"alerts to {origin}", True, f"{origin} accepts connections; nothing was sent"),
        ]
        assert server.requests == []
    assert [found(each) for each in asked] == [(False, "connection refused")] * 2


def test_a_name_that_no_host_has_is_told() -> None:
    for name in ("no-such-host.invalid", f"{'a' * 64}.example.com"):
        with pytest.raises(Unusable, match="its name is not known"):
            connect(f"http://{name}/in")


def test_a_certificate_that_nobody_signed_is_told(tmp_path: Path) -> None:
    authority = Authority("Test")
    certificate, key = authority.sign(LOOPBACK)
    (tmp_path / "server.pem").write_bytes(certificate)
    (tmp_path / "server.key").write_bytes(key)
    own = str(authority.write_own(tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")

    def serve(server: socket.socket) -> None:
        for _ in range(2):
            accepted, _address = server.accept()
            with accepted:
                try:
                    context.wrap_socket(accepted, server_side=True).close()
                except OSError:
                    continue

    with listening() as (port, server):
        thread = Thread(target=serve, args=(server,))
        thread.start()
        assert connect(f"https://{LOOPBACK}:{port}/x", own).startswith(f"https://{LOOPBACK}:{port} accepts")
        with pytest.raises(Unusable, match=r"TLS failed: .*issuer"):
            connect(f"https://{LOOPBACK}:{port}/x")
        thread.join()


@pytest.mark.parametrize(
    ("status", "usable", "words"),
    [
        (200, True, "the bucket logs is there; nothing was written"),
        (404, False, "there is no bucket logs"),
        (403, False, "the key may not use the bucket logs, or is not accepted"),
    ],
)
def test_a_bucket_is_asked_for(receivers: Find, status: int, usable: bool, words: str) -> None:
    pytest.importorskip("boto3")
    with answering(status) as server:
        (receiver,) = receivers(
            f"""
            passthrough:
              sinks:
                - {{name: store, type: s3, bucket: logs, region: us-east-1, path_style: true, access_key_id: an-id-0123,
                   secret_access_key: hush-hush, endpoint_url: "http://{LOOPBACK}:{server.server_port}"}}
            """
        )
        assert found(receiver) == (usable, words)
        assert [(method, path) for method, path, _, _ in server.requests] == [("HEAD", "/logs")]


def test_the_bucket_of_the_export_is_asked_for(receivers: Find) -> None:
    pytest.importorskip("boto3")
    pytest.importorskip("pyarrow")
    with answering(404) as server:
        directory, receiver = receivers(
            f"""
            passthrough:
              ledger:
                usage_export:
                  format: parquet
                  s3: {{bucket: usage, region: us-east-1, path_style: true, access_key_id: an-id-0123,
                    secret_access_key: hush-hush, endpoint_url: "http://{LOOPBACK}:{server.server_port}"}}
            """
        )
        assert receiver.subject == "export of the ledger"
        assert found(receiver) == (False, "there is no bucket usage")
        assert directory.subject == "directory of the ledger's export"


def test_the_directory_of_the_export_is_looked_at(receivers: Find, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "file").touch()
    for name, usable, words in (("new/usage", True, "can be written"), ("file/usage", False, "is no directory")):
        (receiver,) = receivers(
            f"passthrough: {{ledger: {{usage_export: parquet, usage_export_directory: {tmp_path}/{name}}}}}"
        )
        result, text = found(receiver)
        assert result is usable
        assert text.endswith(words)
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == [], "it changes nothing"


def test_files_syslog_and_the_journal_are_looked_at(receivers: Find, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    with listening() as (port, server), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as entries:
        entries.bind(journal)
        asked = receivers(
            f"""
            passthrough:
              sinks:
                - {{name: file, type: file, path: "{tmp_path}/log"}}
                - {{name: nowhere, type: file, path: "{tmp_path}/none/log"}}
                - {{name: syslog, type: syslog, address: "tcp://{LOOPBACK}:{port}"}}
                - {{name: none, type: syslog, address: "tcp://{LOOPBACK}:{free_port()}"}}
                - {{name: journal, type: journald, socket: "{journal}"}}
            """
        )
        assert {each.subject: found(each) for each in asked} == {
            "sink file": (True, f"{tmp_path}/log can be written"),
            "sink nowhere": (False, f"there is no directory {tmp_path}/none"),
            "sink syslog": (True, "it accepts connections; nothing was sent"),
            "sink none": (False, "connection refused"),
            "sink journal": (True, f"{journal} accepts entries; nothing was sent"),
        }
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(100) == b""
        entries.setblocking(False)
        with pytest.raises(BlockingIOError):
            entries.recv(100)
    assert not (tmp_path / "log").exists(), "it changes nothing"


def test_an_object_is_imported(receivers: Find) -> None:
    text = "passthrough: {{sinks: [{{name: own, type: python, object: {}}}]}}"
    (absent,) = receivers(text.format("no_such_module.logger"))
    good, words = found(absent)
    assert not good
    assert words.startswith("no_such_module cannot be imported: No module named no_such_module (it is looked for in ")
    (present,) = receivers(text.format("builtins.print"))
    assert found(present) == (True, "builtins.print can be used")
