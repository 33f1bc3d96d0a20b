"""The settings of sinks."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.sinks import TYPES, SyslogAddress

#: a sink of each type, with what it needs
ENOUGH: dict[str, dict[str, Any]] = {
    "stdout": {},
    "file": {"path": "a.log"},
    "syslog": {},
    "journald": {},
    "webhook": {"url": "https://logs.example.com/in"},
    "s3": {"bucket": "logs"},
    "database": {},
    "python": {"object": "my.logger"},
}


def written(*sinks: dict[str, Any]) -> str:
    return yaml.safe_dump({"passthrough": {"sinks": list(sinks)}})


def test_each_type_starts_with_what_it_needs(load_text: Loader) -> None:
    assert ENOUGH.keys() <= TYPES.keys()
    sinks = [{"name": f"a-{type_}", "type": type_, **needs} for type_, needs in ENOUGH.items()]
    assert [sink.type for sink in load_text(written(*sinks), BASE).sinks] == list(ENOUGH)


@pytest.mark.parametrize(
    ("sink", "path", "says"),
    [
        ({"type": "stdout"}, ".name", "is missing"),
        ({"name": "a/b", "type": "stdout"}, ".name", "must be a name"),
        ({"name": "..", "type": "stdout"}, ".name", "must be a name"),
        ({"name": "a", "type": "stdot"}, ".type", "did you mean 'stdout'?"),
        ({"name": "a", "type": "webhook"}, ".url", "is missing"),
        ({"name": "a", "type": "file"}, ".path", "is missing"),
        ({"name": "a", "type": "s3"}, ".bucket", "is missing"),
        ({"name": "a", "type": "python"}, ".object", "is missing"),
        ({"name": "a", "type": "stdout", "url": "https://x/"}, ".url", "does not belong"),
        ({"name": "a", "type": "webhook", "url": "https://x/", "format": "text"}, ".format", "must be one of"),
        ({"name": "a", "type": "webhook", "url": "https://u:p@x/"}, ".url", "must not hold a user name"),
        ({"name": "a", "type": "webhook", "url": "x"}, ".url", "must begin with"),
        ({"name": "a", "type": "stdout", "events": []}, ".events", "is empty"),
        ({"name": "a", "type": "stdout", "events": ["request"]}, ".events[0]", "did you mean 'requests'?"),
        ({"name": "a", "type": "stdout", "models": ["*" * 9]}, ".models[0]", "8 wildcards"),
        ({"name": "a", "type": "syslog", "address": "udp://h/x"}, ".address", "must be unix:"),
        ({"name": "a", "type": "syslog", "address": "unix:dev/log"}, ".address", "whole path"),
        ({"name": "a", "type": "syslog", "address": "udp://[::1"}, ".address", "must be unix:"),
        ({"name": "a", "type": "s3", "bucket": "A"}, ".bucket", "name of a bucket"),
        ({"name": "a", "type": "s3", "bucket": "logs", "prefix": "/x"}, ".prefix", "must not begin"),
        ({"name": "a", "type": "s3", "bucket": "logs", "access_key_id": "x"}, "", "together"),
        ({"name": "a", "type": "python", "object": "logger"}, ".object", "importable module"),
        ({"name": "a", "type": "stdout", "spool": {"max_bytes": 1}}, ".spool.max_bytes", "1048576 or more"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(problems_of: Refusal, sink: dict[str, Any], path: str, says: str) -> None:
    (line,) = problems_of(written(sink))
    assert line.startswith(f"passthrough.sinks[0]{path}: ")
    assert says in line


def test_names_are_unique(problems_of: Refusal) -> None:
    (line,) = problems_of(written({"name": "a", "type": "stdout"}, {"name": "a", "type": "journald"}))
    assert line.startswith("passthrough.sinks[1].name: stands twice")


@pytest.mark.parametrize("other", ["spools/a", "./spools//a"])
def test_spools_have_directories_of_their_own(problems_of: Refusal, load_text: Loader, other: str) -> None:
    def spooled(name: str, **spool: Any) -> dict[str, Any]:
        return {"name": name, "type": "stdout", "spool": {"enabled": True, **spool}}

    (line,) = problems_of(written(spooled("a", directory="spools/a"), spooled("b", directory=other)))
    assert line.startswith("passthrough.sinks[1].spool.directory: is the directory of the sink a as well")
    (line,) = problems_of(written(spooled("a", directory=str(load_text("", BASE).spool_directory))))
    assert line.startswith("passthrough.sinks[0].spool.directory: is the directory of the ledger as well")
    both = spooled("a"), spooled("b"), {**spooled("c", directory="spools/a"), "spool": {"directory": "spools/a"}}
    assert len(load_text(written(*both), BASE).sinks) == 3


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/dev/log", SyslogAddress("unix", "/dev/log")),
        ("unix:///run/log", SyslogAddress("unix", "/run/log")),
        ("udp://logs", SyslogAddress("udp", "logs", 514)),
        ("tcp://127.0.0.1:9", SyslogAddress("tcp", "127.0.0.1", 9)),
        ("tls://[::1]", SyslogAddress("tls", "::1", 6514)),
    ],
)
def test_addresses_of_syslog(load_text: Loader, text: str, address: SyslogAddress) -> None:
    assert load_text(written({"name": "a", "type": "syslog", "address": text}), BASE).sinks[0].address == address


def test_secrets_are_never_shown_and_always_redacted(load_text: Loader) -> None:
    sink = {
        "name": "a",
        "type": "webhook",
        "url": "https://hooks.example.com/services/T000/B000/abcdefghijklmnopqrst?key=query-secret",
        "headers": {"Authorization": "Bearer header-secret"},
        "secret": "signing-secret",
    }
    settings = load_text(written(sink), BASE)
    shown = repr(settings)
    for secret in ("abcdefghijklmnopqrst", "query-secret", "header-secret", "signing-secret"):
        assert secret in settings.secrets
        assert secret not in shown
    # the names of paths that are no tokens stay readable
    assert "services" not in settings.secrets


# prompts and answers in the database


def test_litellm_s_setting_keeps_prompts_in_the_database(load_text: Loader) -> None:
    general = "general_settings: {store_prompts_in_spend_logs: true}\n"
    settings = load_text(general, BASE)
    assert [(each.name, each.type) for each in settings.all_sinks] == [("spend_logs", "database")]
    assert settings.log_bodies.mode == "full"
    said = load_text(general + "passthrough: {log_bodies: {mode: metadata, max_prompt_bytes: 5}}", BASE)
    assert (said.log_bodies.mode, said.log_bodies.max_prompt_bytes) == ("metadata", 5)
    own = load_text(general + written({"name": "mine", "type": "database", "keep_for": "2d"}), BASE)
    assert [(each.name, each.keep_for) for each in own.all_sinks] == [("mine", 172_800.0)]
    assert load_text("general_settings: {store_prompts_in_spend_logs: false}", BASE).all_sinks == ()
    assert load_text("", BASE).log_bodies.mode == "off"


def test_a_database_keeps_no_log_lines(load_text: Loader, problems_of: Refusal) -> None:
    (sink,) = load_text(written({"name": "a", "type": "database"}), BASE).sinks
    assert sink.events == ("requests",)
    (line,) = problems_of(written({"name": "a", "type": "database", "events": ["requests", "log"]}))
    assert line.startswith("passthrough.sinks[0].events: has log")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (written({"name": "a", "type": "database"}, {"name": "b", "type": "database"}), "passthrough.sinks[1].type"),
        (
            written({"name": "a", "type": "database"}) + "  ledger: {enabled: false}\n",
            "passthrough.sinks[0].type",
        ),
        (
            "general_settings: {store_prompts_in_spend_logs: true}\npassthrough: {ledger: {enabled: false}}",
            "general_settings.store_prompts_in_spend_logs",
        ),
        (
            "general_settings: {store_prompts_in_spend_logs: true}\n"
            + written({"name": "spend_logs", "type": "stdout"}),
            "passthrough.sinks[0].name",
        ),
    ],
)
def test_a_database_that_could_keep_nothing_is_refused(problems_of: Refusal, text: str, place: str) -> None:
    (line,) = problems_of(text)
    assert line.startswith(f"{place}: ")


def test_who_else_gets_prompts_is_told(load_text: Loader) -> None:
    general = "general_settings: {store_prompts_in_spend_logs: true}\n"
    webhook = {"name": "hook", "type": "webhook", "url": "https://logs.example.com/in", "format": "event"}
    (warning,) = load_text(general + written(webhook), BASE).warnings
    assert "hook" in warning
    assert "passthrough.log_bodies.mode" in warning
