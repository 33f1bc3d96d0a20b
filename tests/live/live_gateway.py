"""The gateway as its users start it, in front of a real vLLM: a process of its own, asked over blocking sockets."""

from __future__ import annotations

import http.client
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import environment

#: seconds after which a test that waits for a process, or for vLLM, fails
PATIENCE = 60.0
#: seconds between two looks at another process
INTERVAL = 0.05

Headers = list[tuple[str, str]]

#: all that the gateway adds to an answer of vLLM's: LiteLLM's headers, for a key without limits
ADDED_HEADERS = {"x-litellm-call-id", "x-litellm-model-id", "x-litellm-model-group"}


@attrs.frozen
class Answer:
    """One HTTP response as it came: the headers in their order, with their case and their repetitions."""

    status: int
    reason: str
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for each, value in self.headers if each.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_code(self) -> tuple[int, str]:
        """Status and code of an error that is the gateway's own."""
        code = self.json["error"]["code"]
        assert self.header("x-vllm-passthrough-error") == code, "not an error of the gateway"
        return self.status, code


def without_added(answer: Answer) -> Answer:
    """Return an answer of the gateway without the headers that it adds, each once; all others are vLLM's."""
    added = [(name, value) for name, value in answer.headers if name in ADDED_HEADERS]
    assert len(dict(added)) == len(added)
    assert dict(added).get("x-litellm-call-id") == answer.header("x-request-id")
    return attrs.evolve(answer, headers=[pair for pair in answer.headers if pair not in added])


def connect(base: str) -> http.client.HTTPConnection:
    """Return a connection to the server of a base URL, not yet open."""
    parts = urlsplit(base)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    assert parts.hostname is not None
    return kind(parts.hostname, parts.port, timeout=PATIENCE)


def send(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | Iterable[bytes] | None = None,
) -> http.client.HTTPResponse:
    """Send one request with exactly these headers, besides ``Host`` and the framing; a body in pieces goes chunked."""
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    chunked = body is not None and not isinstance(body, bytes)
    if chunked:
        connection.putheader("Transfer-Encoding", "chunked")
    elif isinstance(body, bytes):
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body, encode_chunked=chunked)
    return connection.getresponse()


def read(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, response.reason, response.getheaders(), response.read())


def ask(
    base: str,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | Iterable[bytes] | None = None,
) -> Answer:
    """Send one request to `target` below a base URL, on a connection of its own."""
    connection = connect(base)
    try:
        return read(send(connection, method, urlsplit(base).path + target, headers, body))
    finally:
        connection.close()


def bearer(key: str | None) -> Headers:
    return [] if key is None else [("Authorization", f"Bearer {key}")]


def json_request(value: object) -> dict[str, Any]:
    """Return the arguments of `ask` for a JSON body."""
    return {"headers": [("Content-Type", "application/json")], "body": json.dumps(value).encode()}


def wait_until(is_so: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for another process, whose clock the test cannot control."""
    end = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < end, f"waited {patience:.0f} s, and still not: {what}"
        time.sleep(INTERVAL)


def new_secret() -> str:
    """Return a new master key."""
    return f"sk-live-{secrets.token_hex(16)}"


class LiveGateway:
    """``twistd -n vllm-passthrough`` in a directory of its own.

    Attributes:
        url: where it listens.
        master_key: the administrator's key; None in open mode.
        secrets: what the gateway must not write anywhere; `make_key` adds to it.
    """

    def __init__(self, directory: Path, *, config: str | None = None, **variables: str) -> None:
        """Start it and wait until it is ready.

        Args:
            directory: its run directory, empty.
            config: the text of its configuration file, if it has one.
            variables: its environment, besides what every program needs.
        """
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.master_key = variables.get("LITELLM_MASTER_KEY")
        self.secrets = {value for name, value in variables.items() if name.endswith("_KEY")}
        self._directory = directory
        self._files = [directory / "stdout", directory / "stderr"]
        arguments = ["-n", "--pidfile=", "vllm-passthrough", "--listen", f"tcp:{port}:interface=127.0.0.1"]
        if config is not None:
            (directory / "config.yaml").write_text(config)
            arguments += ["--config", "config.yaml"]
        with self._files[0].open("wb") as stdout, self._files[1].open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("twistd")), *arguments],
                cwd=directory,
                env=environment(**variables),
                stdout=stdout,
                stderr=stderr,
            )
        try:
            wait_until(self._is_ready, "the gateway is ready")
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, f"the gateway did not start:\n{self.written()}"
        try:
            return ask(self.url, "GET", "/health/readiness").status == 200
        except OSError:
            return False

    def ask(
        self,
        method: str,
        target: str,
        key: str | None = None,
        headers: Headers | None = None,
        body: bytes | Iterable[bytes] | None = None,
    ) -> Answer:
        """Send one request, with this key."""
        return ask(self.url, method, target, bearer(key) + (headers or []), body)

    def make_key(self, **options: object) -> str:
        """Make a virtual key; the options are those of ``/key/generate``."""
        answer = self.ask("POST", "/key/generate", self.master_key, **json_request(options))
        assert answer.status == 200, answer.body
        key = str(answer.json["key"])
        self.secrets.add(key)
        return key

    def written(self) -> str:
        """Return all that it has written so far: standard output, standard error and its log files."""
        return "\n".join(path.read_text() for path in [*self._files, *sorted(self._directory.glob("*.log*"))])

    def record_of(self, request_id: str) -> dict[str, Any]:
        """Return the log record of a request, once it is written."""
        wait_until(lambda: self._find_record(request_id), f"request {request_id} is in the log")
        found = self._find_record(request_id)
        assert found is not None
        return found

    def _find_record(self, request_id: str) -> dict[str, Any] | None:
        for line in self.written().splitlines():
            if request_id in line and line.startswith("{"):
                record: dict[str, Any] = json.loads(line)
                if record.get("request_id") == request_id:
                    return record
        return None

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def check_after_stop(self) -> None:
        """Stop it, and check that it drained, failed nowhere and wrote no secret."""
        status = self.stop()
        written = self.written()
        # after a clean stop twistd kills itself with the signal that it was sent
        assert status in (0, -signal.SIGTERM), f"exit status {status}:\n{written[-4000:]}"
        assert '"message":"Drained in ' in written, f"it did not drain:\n{written[-4000:]}"
        assert "Traceback" not in written, f"it failed somewhere:\n{written}"
        told = [line for line in written.splitlines() if any(secret in line for secret in self.secrets)]
        assert not told, f"secrets in what it wrote: {told}"
