"""Texts that PostgreSQL does not store, wherever a client may write one: each request has its row all the same."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.many_callers import RESPONSE
from tests.end_to_end.process_harness import Connection, served
from tests.end_to_end.test_secrets_in_every_field import fields_of
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, ask, wait_until

#: a NUL, half a character, control characters, what forges a line of a log, no character at all
TEXTS = ("a\x00b", "\ud800", "a\x1fb", "a\nb", "\x7f\x9b31m", "\ufffe", "\u202eabc", "'; DROP TABLE x; --", "a" * 5000)
#: where in a field a text may stand, beside being the field's value
SHAPES: tuple[Callable[[str], Any], ...] = (
    lambda text: [text],
    lambda text: {text: text},
    lambda text: {"a": text},
    lambda text: [{"user_id": text}],
)
SETTINGS = """
passthrough: {log: {file: gateway.log}, ledger: {usage_headers: [x-project]}}
general_settings: {user_header_name: x-end-user}
"""


def serve(connection: Connection) -> None:
    """Answer request after request of one connection, whatever its body is."""
    while head := connection.read_head():
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        connection.read(sum(int(line.partition(b":")[2]) for line in lengths))
        connection.send(RESPONSE)


def bodies(text: str) -> list[dict[str, Any]]:
    plain = {"model": "m", "prompt": "a", "max_tokens": 1}
    return [
        {**plain, "user": text},
        {**plain, "model": text},
        {**plain, "metadata": {"tags": [text, text + "1"]}},
        {**plain, "metadata": {"spend_logs_metadata": {text: text}}},
        {**plain, "litellm_metadata": {"tags": [text], "spend_logs_metadata": {"a": [text]}}},
        {**plain, "metadata": {"user_id": text}},
    ]


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_each_request_has_its_row_whatever_it_names(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = {"DATABASE_URL": request.getfixturevalue("postgresql_url")} if kind == "postgresql" else {}
    with served(serve) as server, Configured(tmp_path, server.port, SETTINGS, **url) as gateway:
        status, made = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", "{}")
        assert status == 200
        key = json.loads(made)["key"]
        answered = 0
        for text in TEXTS:
            for body in bodies(text):
                status, answer = ask(gateway.port, "/vllm/v1/completions", key, "POST", json.dumps(body))
                assert status < 500, (body, answer)
                answered += status == 200
            raw = text.encode("utf-8", "surrogatepass").translate(None, b"\x00\r\n")
            for name in ("x-litellm-tags", "x-litellm-spend-logs-metadata", "x-end-user", "x-project", "x-request-id"):
                connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                connection.putrequest("POST", "/vllm/v1/completions")
                for header, value in headers.items():
                    connection.putheader(header, value)
                sent = b'{"model": "m", "prompt": "a", "max_tokens": 1}'
                connection.putheader("Content-Length", str(len(sent)))
                connection._buffer.append(name.encode() + b": " + raw)  # type: ignore[attr-defined]  # any bytes
                connection.endheaders(sent)
                response = connection.getresponse()
                assert response.status < 500, (name, text)
                answered += response.status == 200
                response.read()
                connection.close()
        assert answered > 50

        def rows() -> int:
            status, listed = ask(gateway.port, "/spend/logs/v2?page_size=100&start_date=2020-01-01", MASTER_KEY)
            assert status == 200, listed
            return int(json.loads(listed)["total"])

        wait_until(lambda: rows() >= answered)
        _, metrics = ask(gateway.port, "/metrics")
        assert "\x1b" not in metrics


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
def test_no_field_of_an_administrative_route_breaks_the_database(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = {"DATABASE_URL": request.getfixturevalue("postgresql_url")} if kind == "postgresql" else {}
    with served(serve) as server, Configured(tmp_path, server.port, SETTINGS, **url) as gateway:
        document = json.loads(ask(gateway.port, "/openapi.json")[1])
        named = {"user_id": "u", "team_id": "t", "key": "sk-0123456789abcdef", "organization_alias": "o", "models": []}
        failed, asked = [], 0
        texts = TEXTS[:3]
        # one shape more than texts: the next field gets other pairs
        turns = cycle(texts)
        for path, operations in document["paths"].items():
            operation = operations.get("post")
            if operation is None or path == "/config/reload":
                continue
            there = path.replace("{", "").replace("}", "")
            for name in fields_of(document, operation):
                # each text and each shape for each field; each text in each shape for the fields together
                for value in (*texts, *(shape(next(turns)) for shape in SHAPES)):
                    body = json.dumps({**named, name: value})
                    status, answer = ask(gateway.port, there, MASTER_KEY, "POST", body)
                    asked += 1
                    if status >= 500:
                        failed.append((path, body, answer))
        assert asked > 1000
        assert failed == []
