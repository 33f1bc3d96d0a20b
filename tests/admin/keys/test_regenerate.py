"""A key gets another value and stays the same key."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import MASTER_KEY, Gateway

OLD = "sk-old-value-0123456789"
NEW = "sk-new-value-0123456789"


def code(gateway: Gateway, key: str) -> Any:
    answer = gateway.get("/key/info", key=key)
    return answer.status if answer.status == 200 else answer.error["code"]


def test_the_new_value_works_at_once_and_the_old_one_does_not(gateway: Gateway) -> None:
    gateway.make_key(key=OLD)
    answer = gateway.post("/key/regenerate", {"key": OLD})
    assert answer.status == 200
    assert code(gateway, answer.json["key"]) == 200
    assert code(gateway, OLD) == "expired_api_key"
    assert "replaced" in gateway.get("/key/info", key=OLD).error["message"]


@pytest.mark.parametrize("path", [f"/key/{OLD}/regenerate", "/key/TOKEN/regenerate"])
def test_the_path_may_name_the_key(gateway: Gateway, path: str) -> None:
    made = gateway.make_key(key=OLD)
    answer = gateway.post(path.replace("TOKEN", made["token"]), {"new_key": NEW})
    assert (answer.status, answer.json["key"]) == (200, NEW)
    assert code(gateway, NEW) == 200


def test_a_path_and_a_body_that_name_different_keys_are_refused(gateway: Gateway) -> None:
    gateway.make_key(key=OLD)
    answer = gateway.post(f"/key/{OLD}/regenerate", {"key": NEW})
    assert (answer.status, answer.error["param"]) == (400, "key")


def test_the_record_keeps_its_history(gateway: Gateway) -> None:
    made = gateway.make_key(key=OLD, key_alias="team", models=["a"], metadata={"n": 1}, duration="30d")
    [before] = gateway.records()
    gateway.clock.advance(60)
    answer = gateway.post("/key/regenerate", {"key_alias": "team", "new_key": NEW})
    kept = ("key_alias", "models", "metadata", "expires", "created_at", "created_by")
    assert {name: answer.json[name] for name in kept} == {name: made[name] for name in kept}
    assert answer.json["key_name"] == "sk-...6789"
    assert (answer.json["rotation_count"], answer.json["last_rotation_at"]) == (1, "2026-03-01T12:01:00Z")
    [after] = gateway.records()
    assert (after.key_id, after.token == before.token) == (before.key_id, False)


def test_both_values_work_during_the_grace_and_the_old_one_stops_at_its_end(gateway: Gateway) -> None:
    gateway.make_key(key=OLD)
    gateway.post("/key/regenerate", {"key": OLD, "new_key": NEW, "grace_period": "1h"})
    assert (code(gateway, OLD), code(gateway, NEW)) == (200, 200)
    assert gateway.get("/key/info", key=OLD).json["info"]["key_name"] == "sk-...6789"
    gateway.clock.advance(3599)
    assert code(gateway, OLD) == 200
    gateway.clock.advance(1)
    assert (code(gateway, OLD), code(gateway, NEW)) == ("expired_api_key", 200)


def test_what_is_changed_during_the_grace_acts_on_both_values(gateway: Gateway) -> None:
    gateway.make_key(key=OLD)
    gateway.post("/key/regenerate", {"key": OLD, "new_key": NEW, "grace_period": "1h"})
    gateway.post("/key/block", {"key": NEW})
    assert (code(gateway, OLD), code(gateway, NEW)) == ("blocked_api_key", "blocked_api_key")
    gateway.post("/key/delete", {"keys": [NEW]})
    assert (code(gateway, OLD), code(gateway, NEW)) == ("invalid_api_key", "invalid_api_key")


def test_a_value_whose_grace_still_runs_outlives_the_next_regeneration(gateway: Gateway) -> None:
    gateway.make_key(key=OLD)
    gateway.post("/key/regenerate", {"key": OLD, "new_key": NEW, "grace_period": "1h"})
    third = gateway.post("/key/regenerate", {"key": NEW}).json["key"]
    assert (code(gateway, OLD), code(gateway, NEW), code(gateway, third)) == (200, "expired_api_key", 200)
    gateway.clock.advance(3600)
    assert code(gateway, OLD) == "expired_api_key"


def test_values_that_ended_long_ago_are_forgotten(gateway: Gateway) -> None:
    gateway.make_key(key=OLD)
    gateway.post("/key/regenerate", {"key": OLD, "new_key": NEW})
    gateway.clock.advance(86_400)
    gateway.post("/key/regenerate", {"key": NEW})
    assert code(gateway, OLD) == "invalid_api_key"


@pytest.mark.parametrize("taken", [OLD, MASTER_KEY, "sk-another-0123456789"])
def test_a_value_that_is_taken_is_a_conflict(gateway: Gateway, taken: str) -> None:
    gateway.make_key(key=OLD)
    gateway.make_key(key="sk-another-0123456789")
    gateway.post("/key/regenerate", {"key": OLD, "new_key": NEW, "grace_period": "1h"})
    answer = gateway.post("/key/regenerate", {"key": NEW, "new_key": taken})
    assert (answer.status, answer.error["code"]) == (409, "conflict")
    assert taken not in answer.body.decode()
    assert gateway.post("/key/generate", {"key": OLD}).status == 409
    assert code(gateway, NEW) == 200


def test_a_regeneration_may_change_the_key_likewise(gateway: Gateway) -> None:
    gateway.make_key(key=OLD, models=["a"])
    answer = gateway.post("/key/regenerate", {"key": OLD, "models": None, "priority": 3, "duration": "1h"})
    assert (answer.json["models"], answer.json["priority"]) == ([], 3)
    assert answer.json["expires"] == "2026-03-01T13:00:00Z"


@pytest.mark.parametrize("grace", ["soon", -1, "-1", 3600, 1.5])
def test_a_grace_that_is_none_is_refused(gateway: Gateway, grace: object) -> None:
    gateway.make_key(key=OLD)
    answer = gateway.post("/key/regenerate", {"key": OLD, "grace_period": grace})
    assert (answer.status, answer.error["param"]) == (400, "grace_period")
    assert code(gateway, OLD) == 200


@pytest.mark.parametrize("grace", [None, "", 0, "0s"])
def test_no_grace_is_no_grace(gateway: Gateway, grace: object) -> None:
    gateway.make_key(key=OLD)
    assert gateway.post("/key/regenerate", {"key": OLD, "grace_period": grace}).status == 200
    assert code(gateway, OLD) == "expired_api_key"


def test_the_master_key_is_not_regenerated_here(gateway: Gateway) -> None:
    gateway.make_key(key=OLD)
    answer = gateway.post("/key/regenerate", {"key": OLD, "new_master_key": NEW})
    assert (answer.status, answer.error["param"]) == (400, "new_master_key")
    assert gateway.post("/key/regenerate", {"key": MASTER_KEY}).status == 404
