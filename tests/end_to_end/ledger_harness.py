"""A server that follows a script for each request, a gateway in front of it, and a reader of the gateway's ledger."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.end_to_end.messages import header_of, length_of
from tests.end_to_end.process_harness import Connection, ThreadedServer, connect
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, ask, wait_until
from tests.ledger_file import open_ledger

Columns = dict[str, Any]
#: what a server does with a request that it has read; its second argument is how often this request came before
Script = Callable[[Connection, int], None]

CHAT = "/v1/chat/completions"
CHAT_BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":false}'
STREAM_BODY = CHAT_BODY.replace(b"false", b"true")
#: what the gateway inserts to ask for the stream's usage
#: the usage that the server reports
USED = b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
ANSWER = b'{"choices":[],%b}' % USED


def event(**delta: str) -> bytes:
    """Return an event of a chat's stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()


#: the role, and two tokens
EVENTS = event(role="assistant") + event(content="a") + event(content="b")
USAGE_EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],%b}\n\n' % USED
DONE = b"data: [DONE]\n\n"


class ScriptedServer:
    """A server that does with each request what its ``X-Script`` names.

    Attributes:
        arrivals: how often each request's head came, by the id that its client gave it.
        port: where it listens.
    """

    def __init__(self, scripts: dict[str, Script]) -> None:
        self.arrivals: Counter[str] = Counter()
        self._scripts = scripts
        self._lock = threading.Lock()
        self._server = ThreadedServer(self._serve)
        self.port = self._server.port

    def _serve(self, connection: Connection) -> None:
        while head := connection.read_head():
            if not header_of(head, "x-script"):
                # the gateway's own: a check, or the question whether a server that gave no answer speaks TLS
                connection.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                return
            # a second attempt has another X-Request-Id
            name, request_id = (
                header_of(head, "x-script"),
                header_of(head, "x-own-id") or header_of(head, "x-request-id"),
            )
            with self._lock:
                times = self.arrivals[request_id]
                self.arrivals[request_id] += 1
            if not header_of(head, "x-unread"):
                connection.read(length_of(head))
            self._scripts[name](connection, times)

    def stop(self) -> None:
        self._server.stop()


#: each row with its payer and its target, and the meaning of its empty columns
ROWS = """
SELECT row.*, coalesce(row.request_id, row.id) AS request_id, coalesce(row.error, '') AS error,
    coalesce(row.headers, '{}') AS headers, payer.*, target.*, row.id AS id
FROM vllm_passthrough_usage AS row
JOIN vllm_passthrough_usage_payers AS payer ON payer.id = row.payer
JOIN vllm_passthrough_usage_targets AS target ON target.id = row.target
ORDER BY row.time, row.id
"""


def rows_in(database: Path) -> dict[str, list[Columns]]:
    """Return the ledger's rows, by the ids of their requests."""
    found: dict[str, list[Columns]] = {}
    with closing(open_ledger(database)) as connection:
        cursor = connection.execute(ROWS)
        names = [column[0] for column in cursor.description]
        for values in cursor:
            # of two columns of one name the later one counts
            row = dict(zip(names, values, strict=True))
            found.setdefault(row["request_id"], []).append(row)
    return found


class LedgerGateway(Configured):
    """``twistd -n vllm-passthrough`` with a ledger that can be read.

    Attributes:
        database: its SQLite file.
    """

    def __init__(self, directory: Path, server: int, settings: str) -> None:
        self.database = directory / "twisted_vllm.sqlite3"
        self._log = directory / "gateway.log"
        super().__init__(directory, server, settings)

    def administer(self, path: str, **body: object) -> Any:
        """Call an admin route; return its answer."""
        status, text = ask(self.port, path, MASTER_KEY, "POST", json.dumps(body))
        assert status == 200, text
        return json.loads(text)

    def logged(self, request_id: str) -> bool:
        """Return whether a request has its line in the log."""
        return f'"request_id":"{request_id}"' in self._log.read_text()

    def rows(self) -> dict[str, list[Columns]]:
        return rows_in(self.database)


class Caller:
    """Sends requests to a gateway as the holder of one key.

    Attributes:
        gateway: the gateway.
        server: the server behind it.
        key: the key.
    """

    def __init__(self, gateway: LedgerGateway, server: ScriptedServer, key: str) -> None:
        self.gateway = gateway
        self.server = server
        self.key = key

    def request(
        self,
        name: str,
        body: bytes = CHAT_BODY,
        *lines: str,
        method: str = "POST",
        path: str = CHAT,
        length: int | None = None,
        script: str = "",
        version: str = "1.1",
    ) -> bytes:
        """Return a request.

        Args:
            name: its id, and what the server does with it where `script` names nothing else.
            body: its body, or what is sent of it.
            lines: more of its head.
            method: its method.
            path: the path that the server sees.
            length: its ``Content-Length``, where that is not the body's; below 0, it has none.
            script: what the server does with it.
            version: of HTTP.
        """
        head = [
            f"{method} /vllm{path} HTTP/{version}",
            "Host: gateway",
            f"Authorization: Bearer {self.key}",
            f"X-Request-Id: {name}",
            f"X-Own-Id: {name}",
            f"X-Script: {script or name}",
            *lines,
        ]
        if body and not any(line.startswith("Content-Type") for line in lines):
            head.append("Content-Type: application/json")
        announced = len(body) if length is None else length
        if announced > 0:
            head.append(f"Content-Length: {announced}")
        return "\r\n".join([*head, "", ""]).encode() + body

    @contextmanager
    def sent(self, raw: bytes) -> Iterator[Connection]:
        """Send bytes on a connection of their own."""
        connection = connect(self.gateway.port)
        try:
            connection.send(raw)
            yield connection
        finally:
            connection.close()

    def until_arrived(self, name: str, times: int = 1) -> None:
        """Wait until the request's head has come to the server so many times."""
        wait_until(lambda: self.server.arrivals[name] >= times)

    def answer(self, raw: bytes, status: int) -> bytes:
        """Send a request, and return the body of the answer: one with a length, in chunks, or without any."""
        with self.sent(raw) as connection:
            head = connection.read_head()
            assert head.startswith(b"HTTP/1.1 %d " % status), head
            if header_of(head, "transfer-encoding") == "chunked":
                return read_chunks(connection)
            if raw.startswith(b"HEAD ") or status in (204, 304):
                return b""
            return connection.read(length_of(head))


def read_chunks(connection: Connection) -> bytes:
    """Read a body in chunks to its end."""
    found = b""
    while size := int(connection.read_until(b"\r\n"), 16):
        found += connection.read(size)
        connection.read(2)
    connection.read(2)
    return found
