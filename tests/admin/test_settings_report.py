"""``GET /config`` and ``GET /config/models``: what they answer, whom, and that no secret is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import succeed

from tests.admin.admin_harness import Gateway
from tests.config.test_in_force import HUSH, SECRETS, written
from twisted_vllm.config.load import load
from twisted_vllm.config.reload import MOST_LINES, ReloadEnd, ReloadState
from twisted_vllm.config.settings import Settings
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.redaction import Redactor

FILE = """\
general_settings:
  master_key: sk-master-secret-0123
  completion_model: m
model_list:
  - {model_name: other, litellm_params: {model: openai/x}}
  - model_name: m
    litellm_params: {model: hosted_vllm/served, api_base: "http://gpu:8000", api_key: of-server-0123, rpm: 60}
passthrough:
  drain_delay: 2.5
"""


def settings_of(tmp_path: Path, text: str = FILE) -> Settings:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load(file=str(file), environ={})


def gateway(settings: Settings, state: ReloadState | None = None, **options: Any) -> Gateway:
    known = ReloadState(read_at=1_772_366_400.0) if state is None else state
    return Gateway(settings_in_effect=lambda: settings, reload_state=lambda: succeed(known), **options)


def test_every_setting_is_told_with_value_default_and_place(tmp_path: Path) -> None:
    answer = gateway(settings_of(tmp_path)).get("/config").json
    assert answer["read_at"] == "2026-03-01T12:00:00Z"
    assert (answer["total"], answer["models"]) == (len(answer["settings"]), 1)
    found = {each["path"]: each for each in answer["settings"]}
    delay = found["passthrough.drain_delay"]
    assert (delay["value"], delay["default"], delay["changed"], delay["hidden"]) == (2.5, 0.0, True, False)
    source = {"kind": "file", "file": str(tmp_path / "config.yaml"), "line": 9, "name": None}
    assert (delay["source"], delay["restart"], delay["unit"]) == (source, False, "seconds")
    assert "SIGTERM" in delay["description"]
    assert found["passthrough.drain_timeout"]["source"]["kind"] == "default"
    assert found["passthrough.listen"]["restart"] is True
    assert found["general_settings.master_key"]["value"] == "***"
    assert found["general_settings.master_key"]["hidden"] is True
    assert found["general_settings.database_url"]["value"] == "SQLite, file twisted_vllm.sqlite3"
    assert "LITELLM_MASTER_KEY" in found["general_settings.master_key"]["environment"]
    [skipped], [ignored] = answer["skipped"], answer["ignored"]
    assert skipped.startswith("model_list[0]")
    assert ignored.startswith("general_settings.completion_model: ")
    assert (answer["last_reload"], answer["restart_needed"]) == (None, [])


def test_settings_can_be_searched_and_cut_to_those_that_differ(tmp_path: Path) -> None:
    asked = gateway(settings_of(tmp_path))

    def paths(query: str) -> list[str]:
        return [each["path"] for each in asked.get(f"/config?{query}").json["settings"]]

    assert paths("changed=true") == ["general_settings.master_key", "passthrough.drain_delay"]
    assert paths("search=DRAIN_") == ["passthrough.drain_delay", "passthrough.drain_timeout"]
    assert paths("search=config.yaml:9") == ["passthrough.drain_delay"]
    assert paths("search=tcp:4000") == ["passthrough.listen"]
    assert "general_settings.master_key" in paths("search=litellm_master_key")
    # what is hidden is not found either
    assert paths("search=master-secret") == []
    assert asked.get("/config?changed=perhaps").status == 400


def test_the_last_reload_is_told(tmp_path: Path) -> None:
    end = ReloadEnd(
        at=1_772_366_460.0,
        by="SIGHUP",
        result="succeeded",
        changed=("passthrough.drain_delay",),
        restart_needed=("passthrough.listen",),
        warnings=("a warning",),
    )
    state = ReloadState(read_at=0.0).after(end)
    answer = gateway(settings_of(tmp_path), state).get("/config?search=passthrough.listen").json
    assert answer["last_reload"] == {
        "at": "2026-03-01T12:01:00Z",
        "by": "SIGHUP",
        "result": "succeeded",
        "changed": ["passthrough.drain_delay"],
        "restart_needed": ["passthrough.listen"],
        "warnings": ["a warning"],
        "problems": [],
    }
    assert answer["read_at"] == "2026-03-01T12:01:00Z"
    assert answer["restart_needed"] == ["passthrough.listen"]
    assert next(each for each in answer["settings"] if each["path"] == "passthrough.listen")["pending"] is True


def test_a_reload_that_failed_leaves_what_was_read_before() -> None:
    before = ReloadState(read_at=5.0, restart_needed=("passthrough.listen",))
    after = before.after(ReloadEnd(at=9.0, by="API", result="invalid", problems=("x",) * 1_000))
    assert (after.read_at, after.restart_needed) == (5.0, ("passthrough.listen",))
    assert after.last is not None
    assert len(after.last.problems) == MOST_LINES + 1


def test_no_secret_is_in_any_answer(tmp_path: Path) -> None:
    settings = load(file=written(tmp_path, SECRETS), environ={})
    # a secret in a place where nobody expects one
    leaking = attrs.evolve(settings, session_header=f"x-sk-{HUSH}-master")
    text = ClientText(Redactor(settings.secrets))
    asked = gateway(leaking, ReloadState(read_at=0.0), text=text)
    for path in ("/config", "/config/models", "/config?changed=true"):
        answer = asked.get(path)
        assert answer.status == 200
        assert HUSH.encode() not in answer.body
    header = next(each for each in asked.get("/config").json["settings"] if each["path"].endswith("session_header"))
    assert (header["value"], header["hidden"]) == ("x-***", True)


def test_entries_of_the_model_list_are_told_page_by_page(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    [entry] = settings.models
    stored = attrs.evolve(entry, model_name="of-the-database", model_id="stored", rpm=None)
    asked = gateway(attrs.evolve(settings, models=(entry, stored)))
    answer = asked.get("/config/models?page_size=1").json
    assert (answer["total"], answer["total_pages"]) == (2, 2)
    [first] = answer["data"]
    assert (first["model_name"], first["model"], first["source"]["line"]) == ("m", "served", 6)
    assert first["values"] == {
        "api_base": "http://gpu:8000",
        "api_key": "***",
        "weight": 1,
        "order": 1,
        "rpm": 60,
    }
    [second] = asked.get("/config/models?page_size=1&page=2").json["data"]
    assert (second["model_name"], second["source"]["kind"], second["source"]["line"]) == (
        "of-the-database",
        "database",
        None,
    )
    assert [each["model_id"] for each in asked.get("/config/models?search=DATABASE").json["data"]] == ["stored"]


@pytest.mark.parametrize("path", ["/config", "/config/models"])
def test_a_member_sees_nothing_of_it(tmp_path: Path, path: str) -> None:
    asked = gateway(settings_of(tmp_path))
    answer = asked.get(path, key=asked.make_key()["key"])
    assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")
