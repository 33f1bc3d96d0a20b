"""The pages of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import fail, succeed

from tests.admin.admin_harness import MASTER_KEY
from tests.admin.test_settings_report import settings_of
from tests.admin.web.web_harness import ConsoleGateway, words
from twisted_vllm.admin.web.pages.config import place_of, text_of
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.reload import Reloaded, ReloadEnd, ReloadState
from twisted_vllm.errors import Draining

BEGUN = ReloadState(read_at=1_772_366_400.0)


def gateway(tmp_path: Path, state: ReloadState = BEGUN, **options: Any) -> ConsoleGateway:
    settings = settings_of(tmp_path)
    return ConsoleGateway(settings_in_effect=lambda: settings, reload_state=lambda: succeed(state), **options)


def test_the_page_begins_with_what_differs_from_the_defaults(tmp_path: Path) -> None:
    browser = gateway(tmp_path).browser(MASTER_KEY)
    said = words(browser.get("/ui/config"))
    assert "2 of 2" in said
    assert "passthrough.drain_delay How long the gateway serves on" in said
    assert f"{tmp_path}/config.yaml:9" in said
    assert "general_settings.master_key" in said
    assert "***" in said
    assert "sk-master" not in said
    assert "passthrough.drain_timeout" not in said
    assert "Skipped entries (1)" in said
    everything = words(browser.get("/ui/config?show=all"))
    assert "passthrough.drain_timeout" in everything


def test_a_search_looks_at_all_settings(tmp_path: Path) -> None:
    browser = gateway(tmp_path).browser(MASTER_KEY)
    assert "passthrough.drain_timeout" in words(browser.get("/ui/config?search=drain_timeout"))
    nothing = words(browser.get("/ui/config?search=drain_timeout&show=changed"))
    assert "Look among all settings" in nothing


def test_htmx_gets_the_content_alone(tmp_path: Path) -> None:
    browser = gateway(tmp_path).browser(MASTER_KEY)
    for path in ("/ui/config?search=drain", "/ui/config/models"):
        answer = browser.get(path, hx_request="true")
        assert answer.status == 200, answer.body
        assert b"<html" not in answer.body
        assert b"<h1>" in answer.body


def test_a_value_full_of_markup_stays_text(tmp_path: Path) -> None:
    attack = '<script>alert("1")</script>'
    settings = attrs.evolve(settings_of(tmp_path), session_header=attack)
    [entry] = settings.models
    settings = attrs.evolve(settings, models=(attrs.evolve(entry, model_name=attack),))
    state = BEGUN.after(ReloadEnd(at=1.0, by=attack, result="invalid", problems=(attack,)))
    asked = ConsoleGateway(settings_in_effect=lambda: settings, reload_state=lambda: succeed(state))
    browser = asked.browser(MASTER_KEY)
    for path in ("/ui/config?show=all", "/ui/config/models", f"/ui/config?search={attack}"):
        answer = browser.get(path)
        assert answer.status == 200
        assert b"<script>alert" not in answer.body
        assert b"&lt;script&gt;" in answer.body


def test_a_reload_leads_to_what_came_of_it(tmp_path: Path) -> None:
    asked = []

    def reload() -> object:
        asked.append(1)
        return succeed(Reloaded(("passthrough.drain_delay",)))

    browser = gateway(tmp_path, reload=reload).browser(MASTER_KEY)
    answer = browser.post("/ui/config/reload")
    assert (answer.status, answer.headers["location"], asked) == (303, "/ui/config?reloaded=1", [1])
    assert browser.get("/ui/config/reload").status == 404


def test_the_problems_of_a_reload_are_a_list(tmp_path: Path) -> None:
    problems = [Problem("passthrough.listen", "is wrong"), Problem("model_list[0]", "is wrong too")]
    end = ReloadEnd(at=1_772_366_460.0, by="API", result="invalid", problems=tuple(map(str, problems)))
    asked = gateway(tmp_path, BEGUN.after(end), reload=lambda: fail(ConfigError(problems)))
    browser = asked.browser(MASTER_KEY)
    answer = browser.post("/ui/config/reload")
    assert answer.status == 303
    page = browser.get(answer.headers["location"])
    assert b'role="alert"' in page.body
    assert b"<li>passthrough.listen: is wrong</li><li>model_list[0]: is wrong too</li>" in page.body
    assert "invalid: nothing was changed" in words(page)


def test_a_reload_that_cannot_be_is_told_on_the_page(tmp_path: Path) -> None:
    browser = gateway(tmp_path, reload=lambda: fail(Draining("It drains.", retry_after=1))).browser(MASTER_KEY)
    answer = browser.post("/ui/config/reload")
    assert answer.status == 503
    assert "It drains." in words(answer)


def test_who_may_only_read_sees_no_buttons(tmp_path: Path) -> None:
    asked = gateway(tmp_path)
    asked.post("/user/new", {"user_id": "auditor", "user_role": "proxy_admin_viewer", "auto_create_key": False})
    browser = asked.browser(asked.make_key(user_id="auditor")["key"])
    page = browser.get("/ui/config")
    assert page.status == 200
    assert "Reload" not in words(page)
    assert browser.post("/ui/config/reload").status == 403


def test_a_log_of_another_program_has_no_level(tmp_path: Path) -> None:
    browser = gateway(tmp_path).browser(MASTER_KEY)
    assert "Level of the log" not in words(browser.get("/ui/config"))
    answer = browser.post("/ui/config/log-level", {"level": "debug", "seconds": "600"})
    assert answer.status == 400
    assert "decides about levels" in words(answer)


def test_the_model_list_has_a_page(tmp_path: Path) -> None:
    browser = gateway(tmp_path).browser(MASTER_KEY)
    said = words(browser.get("/ui/config/models"))
    assert "http://gpu:8000" in said
    assert "of-server" not in said
    assert f"{tmp_path}/config.yaml:6" in said
    assert "No entry is like this." in words(browser.get("/ui/config/models?search=nothing"))


def test_values_and_places_are_told_in_words() -> None:
    values: tuple[object, ...] = ("a", None, True, 1.5, [], {"a": 1})
    assert list(map(text_of, values)) == [
        "a",
        "null",
        "true",
        "1.5",
        "[]",
        '{"a":1}',
    ]
    assert text_of([f"item number {index}" for index in range(5)]).count("\n") == 6
    assert place_of({"kind": "default", "file": None, "line": None, "name": None}) == "default"
    assert place_of({"kind": "file", "file": "a.yaml", "line": 3, "name": "KEY"}) == "a.yaml:3, KEY"
