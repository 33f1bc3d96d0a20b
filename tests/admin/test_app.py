from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.storage.store import Store


def test_the_front_page_says_what_this_is(gateway: Gateway) -> None:
    answer = gateway.get("/", key=None)
    assert answer.status == 200
    assert answer.json["service"] == "twisted_vllm"
    assert "README" in answer.json["docs"]


@pytest.mark.parametrize(
    "path", ["/nothing", "/key", "/key/", "/key/info/x", "/key//info", "///x", "//evil.example/", "/%2e%2e/x"]
)
def test_an_unknown_path_is_not_found_and_not_redirected(gateway: Gateway, path: str) -> None:
    answer = gateway.get(path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/key/generate", "POST"),
        ("DELETE", "/key/list", "GET"),
        ("OPTIONS", "/", "GET"),
        ("POST", "/health/liveness", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    answer = gateway.call(method, path)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.error["message"] == f"This route takes {allowed}."
    assert answer.headers["allow"] == ("POST" if allowed == "POST" else "GET, HEAD")


@pytest.mark.parametrize("path", ["/%ff", "/key/%fe%fe"])
def test_a_path_that_is_not_utf_8_is_refused_quietly(gateway: Gateway, path: str) -> None:
    answer = gateway.get(path)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("host", [b"a" * 64 + b".example", b"\xff.example", b"..", b"[", b"x y"])
def test_a_strange_host_header_is_no_failure(gateway: Gateway, host: bytes) -> None:
    answer = gateway.get("/health/liveness", headers={b"Host": host})
    assert answer.status in (200, 400, 404)
    if answer.status != 200:
        assert answer.error["code"] in ("invalid_request", "not_found")


class BuggyStore(Store):
    def change(self, work: Any) -> Any:
        raise ZeroDivisionError("with what was asked and all")


def test_what_was_not_foreseen_is_logged_and_not_shown(logged_failures: Any) -> None:
    gateway = Gateway(BuggyStore(MemoryDatabase()))
    answer = gateway.post("/key/generate")
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert "with" not in answer.error["message"]
    [failure] = logged_failures.flush(ZeroDivisionError)
    assert failure is not None
    assert len(gateway.index) == 0


def test_every_answer_has_its_length(gateway: Gateway) -> None:
    for path in ("/", "/nothing", "/key/list", "/health/readiness"):
        answer = gateway.get(path)
        assert answer.length == len(answer.body)


def test_two_apps_do_not_share_their_routes_or_keys() -> None:
    one, other = Gateway(), Gateway()
    made = one.make_key()
    assert one.get("/key/info", key=made["key"]).status == 200
    assert other.get("/key/info", key=made["key"]).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/key/list?user_id=",
        "/spend/logs?end_user=",
        "/usage/report?route=",
        "/user/info?user_id=",
        "/spend/logs?request_id=",
    ],
)
def test_a_nul_in_a_query_is_the_callers_fault(gateway: Gateway, path: str) -> None:
    answer = gateway.get(f"{path}a%00")
    assert (answer.status, answer.error["param"]) == (400, path.rpartition("?")[2][:-1])
