"""Two gateways on one PostgreSQL: a new key of one works at once on the other, also while keys are guessed there."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from pathlib import Path

from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import served
from tests.end_to_end.test_ledger_kill import BODY
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, ask
from tests.services.private_postgresql import PrivatePostgresql
from twisted_vllm.identification.inquiry import MOST_QUESTIONS

NEW_KEYS = 100
GUESSERS, GUESSES = 100, 10_000
SETTINGS = "passthrough: {limits: {max_failed_authentications: null}, log: {file: gateway.log}}"


def new_key(port: int) -> str:
    status, body = ask(port, "/key/generate", MASTER_KEY, "POST", "{}")
    assert status == 200, body
    return str(json.loads(body)["key"])


def use(port: int, key: str) -> int:
    """Return the status of a key's first request."""
    return ask(port, "/vllm/v1/chat/completions", key, "POST", BODY.decode())[0]


def questions(port: int) -> float:
    """Return how often a gateway asked the database for callers."""
    [found] = re.findall(r"^vllm_passthrough_key_questions_total (\S+)$", ask(port, "/metrics")[1], re.MULTILINE)
    return float(found)


def guess(port: int, number: int, statuses: list[int]) -> None:
    """Send guessed keys over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for each in range(GUESSES // GUESSERS):
        headers = {"Authorization": f"Bearer sk-guess-{number}-{each:032d}"}
        connection.request("GET", "/vllm/v1/models", headers=headers)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
    connection.close()


def test_the_first_use_of_a_new_key_succeeds_on_the_neighbour(
    tmp_path: Path, postgresql: PrivatePostgresql, postgresql_url: str
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        served(serve) as server,
        Configured(tmp_path / "a", server.port, SETTINGS, DATABASE_URL=postgresql_url) as one,
        Configured(tmp_path / "b", server.port, SETTINGS, DATABASE_URL=postgresql_url) as other,
    ):
        seen = [use(other.port, new_key(one.port)) for _ in range(NEW_KEYS)]
        assert seen == [200] * NEW_KEYS
        statuses: list[int] = []
        before, began = questions(other.port), time.monotonic()
        guessers = [threading.Thread(target=guess, args=(other.port, each, statuses)) for each in range(GUESSERS)]
        for each in guessers:
            each.start()
        seen = [use(other.port, new_key(one.port)) for _ in range(NEW_KEYS)]
        assert seen == [200] * NEW_KEYS
        for each in guessers:
            each.join()
        took = time.monotonic() - began
        assert statuses == [401] * GUESSES
        assert questions(other.port) - before <= MOST_QUESTIONS * took + 1
