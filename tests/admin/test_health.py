from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.admin.admin_harness import Gateway
from twisted_vllm.admin.context import Readiness

LIVENESS = ["/health/liveliness", "/health/liveness"]
READINESS = "/health/readiness"


@pytest.mark.parametrize("path", LIVENESS)
def test_a_living_process_says_so_in_litellms_words(gateway: Gateway, path: str) -> None:
    answer = gateway.get(path, key=None)
    assert (answer.status, answer.json) == (200, "I'm alive!")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", [*LIVENESS, READINESS])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_needs_no_key_and_minds_no_wrong_one(gateway: Gateway, path: str, method: str) -> None:
    for key in (None, "sk-unknown-0123456789"):
        answer = gateway.call(method, path, key=key)
        assert answer.status == 200
        assert (answer.body == b"") is (method == "HEAD")


@pytest.mark.parametrize("path", LIVENESS)
def test_a_draining_process_says_that_it_goes(gateway: Gateway, path: str) -> None:
    gateway.state = Readiness(draining=True, database=True)
    answer = gateway.get(path)
    assert (answer.status, answer.error["code"]) == (503, "draining")


def test_a_dead_database_does_not_make_the_process_dead(gateway: Gateway) -> None:
    gateway.state = Readiness(draining=False, database=False)
    assert gateway.get(LIVENESS[0]).status == 200


def test_a_ready_process_is_healthy_and_connected(gateway: Gateway) -> None:
    answer = gateway.get(READINESS, key=None)
    told = {"status": "healthy", "db": "connected", "database": "available", "draining": False}
    assert (answer.status, answer.json) == (200, told)


def test_a_process_without_its_database_is_ready_and_tells_it(gateway: Gateway) -> None:
    gateway.state = Readiness(draining=False, database=False)
    answer = gateway.get(READINESS, key=None)
    told = {"status": "healthy", "db": "disconnected", "database": "unavailable", "draining": False}
    assert (answer.status, answer.json) == (200, told)


@pytest.mark.parametrize(
    ("state", "code", "database"),
    [
        (Readiness(draining=False, database=False, requires_database=True), "database_unavailable", "disconnected"),
        (Readiness(draining=True, database=True), "draining", "connected"),
        (Readiness(draining=True, database=False), "draining", "disconnected"),
        (Readiness(draining=False, database=True, file_is_lost=True), "database_unavailable", "disconnected"),
    ],
)
def test_a_process_that_is_not_ready_says_why(gateway: Gateway, state: Readiness, code: str, database: str) -> None:
    gateway.state = state
    answer = gateway.get(READINESS)
    assert (answer.status, answer.error["code"]) == (503, code)
    assert (answer.json["status"], answer.json["db"]) == ("unhealthy", database)


def test_the_details_of_readiness_need_a_key_and_name_the_version(gateway: Gateway) -> None:
    assert gateway.get("/health/readiness/details", key=None).status == 401
    answer = gateway.get("/health/readiness/details", gateway.make_key()["key"])
    assert (answer.status, answer.json["status"]) == (200, "healthy")
    assert answer.json["litellm_version"] == version("twisted-vllm")
    gateway.state = Readiness(draining=True, database=True)
    answer = gateway.get("/health/readiness/details")
    assert (answer.status, answer.json["error"]["code"]) == (503, "draining")


def test_the_own_routes_are_listed(gateway: Gateway) -> None:
    found = {each["path"]: each["methods"] for each in gateway.get("/routes", key=None).json["routes"]}
    assert found["/key/{key}/regenerate"] == ["POST"]
    assert found["/organization/info"] == ["GET", "POST"]
