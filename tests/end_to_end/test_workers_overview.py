"""What passes and what is wrong, of a gateway with workers: one answer for all processes, whichever is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.process_harness import served
from tests.end_to_end.test_workers import MODELS, serve_lists
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from tests.end_to_end.workers_harness import Workers, started
from twisted_vllm.workers.siblings import HOUSEKEEPER


@pytest.fixture
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with (
        served(serve_lists) as server,
        started(Workers(tmp_path_factory.mktemp("workers"), server.port, passthrough="drain_timeout: 5")) as gateway,
    ):
        yield gateway


def told(gateway: Workers, path: str) -> Any:
    status, text = ask(gateway.port, path, MASTER_KEY)
    assert status == 200, text
    return json.loads(text)


def passed(gateway: Workers) -> set[int]:
    """Return how many requests passed, as several connections are told: both workers are asked."""
    return {told(gateway, "/gateway/traffic?minutes=60")["summary"]["requests"] for _ in range(6)}


def test_what_passed_is_told_by_each_worker_and_outlives_those_that_are_killed(gateway: Workers) -> None:
    assert gateway.statuses(300, MODELS) == {200: 300}
    wait_until(lambda: passed(gateway) == {300})
    gateway.wait_until_replaced(gateway.kill(1))
    assert passed(gateway) == {300}
    # what is left is told to a new housekeeper: that of the worker that was not killed, and what came since
    assert gateway.statuses(50, MODELS) == {200: 50}
    wait_until(lambda: passed(gateway) == {350})
    gateway.wait_until_replaced(gateway.kill(HOUSEKEEPER))
    wait_until(lambda: not told(gateway, "/gateway/traffic")["of_one_process"])
    wait_until(lambda: len(passed(gateway)) == 1)
    [left] = passed(gateway)
    assert 50 <= left < 350


def test_what_is_wrong_is_told_by_each_worker(gateway: Workers) -> None:
    assert told(gateway, "/gateway/problems")["problems"] == []
    for slot in (1, 2):
        # the end of one is no news, that of two is
        for _ in range(2):
            gateway.wait_until_replaced(gateway.kill(slot))

    def codes() -> set[str]:
        return {each["code"] for _ in range(4) for each in told(gateway, "/gateway/problems")["problems"]}

    wait_until(lambda: codes() == {"process_restarts"})
    problems = told(gateway, "/gateway/problems")["problems"]
    assert {each["subject"] for each in problems} == {"worker-1", "worker-2"}
