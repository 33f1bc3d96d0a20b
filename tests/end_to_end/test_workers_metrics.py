"""``GET /metrics`` of a gateway with workers: one answer for all processes, whichever is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.end_to_end.process_harness import served
from tests.end_to_end.test_workers import MODELS, serve_lists
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from tests.end_to_end.workers_harness import Workers, started


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with (
        served(serve_lists) as server,
        started(Workers(tmp_path_factory.mktemp("workers"), server.port, passthrough="drain_timeout: 5")) as gateway,
    ):
        yield gateway


def scrape(gateway: Workers, key: str = MASTER_KEY) -> str:
    status, text = ask(gateway.port, "/metrics", key)
    assert status == 200
    return text


def total(text: str, name: str, *labels: str) -> float:
    """Return the sum of the samples of a metric that have these labels."""
    lines = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for found, value in lines if all(label in found for label in labels))


def requests(text: str) -> float:
    return total(text, "vllm_passthrough_requests_total", 'route_class="read_only"', 'status="200"')


def test_each_worker_tells_the_requests_of_all_and_a_sum_does_not_fall(gateway: Workers) -> None:
    assert gateway.statuses(1_000, MODELS) == {200: 1_000}
    for _ in range(6):
        # each on a connection of its own, so that both workers are asked
        assert requests(scrape(gateway)) == 1_000
    text = scrape(gateway)
    assert total(text, "vllm_passthrough_processes_answered") == total(text, "vllm_passthrough_processes_running") == 3
    assert total(text, "vllm_passthrough_workers_running") == 2
    shown = set(re.findall(r'^process_cpu_seconds_total{process="(.+)"} ', text, re.MULTILINE))
    assert shown == {"housekeeper", "supervisor", "worker-1", "worker-2"}
    names = re.findall(r"^(\w+(?:{.*})?) \S+$", text, re.MULTILINE)
    assert len(names) == len(set(names))
    # what was told before is not taken back when the process that counted it is gone
    gateway.wait_until_replaced(gateway.kill(1))
    for _ in range(6):
        assert requests(scrape(gateway)) == 1_000
    assert gateway.statuses(20, MODELS) == {200: 20}
    wait_until(lambda: requests(scrape(gateway)) == 1_020)
    text = scrape(gateway)
    assert total(text, "vllm_passthrough_process_ends_total", 'process="worker-1"', 'reason="by SIGKILL"') == 1


def test_strangers_get_no_names_and_the_same_numbers_from_each_worker(gateway: Workers) -> None:
    gateway.statuses(20, MODELS)
    status, text = ask(gateway.port, "/metrics", "")
    found = set()
    for _ in range(6):
        status, text = ask(gateway.port, "/metrics", "")
        assert status == 200
        assert "127.0.0.1" not in text
        found.add(frozenset(re.findall(r'server="([^"]*)"', text)))
    assert len(found) == 1


def test_the_level_of_the_log_changes_in_all_processes_and_lines_name_theirs(gateway: Workers) -> None:
    assert ask(gateway.port, "/config/log_level", MASTER_KEY, "PUT", '{"level": "debug", "seconds": 600}')[0] == 200
    for _ in range(6):
        status, text = ask(gateway.port, "/config/log_level", MASTER_KEY)
        assert (status, json.loads(text)["level"]) == (200, "debug")
    # a killed process loses the lines that its thread has not written yet
    wait_until(lambda: len(gateway.messages("The log's level is debug")) == 3)
    gateway.wait_until_replaced(gateway.kill(1))
    wait_until(lambda: len(gateway.messages("The log's level is debug")) == 4)
    found = {line["process"] for line in gateway.lines()}
    assert found == {"supervisor", "housekeeper", "worker-1", "worker-2"}
    for _ in range(6):
        status, text = ask(gateway.port, "/health/readiness", "")
        assert (status, json.loads(text)["database"]) == (200, "available")
