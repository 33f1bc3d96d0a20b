"""The files that an operator starts from: complete, loadable, and true about the defaults."""

from __future__ import annotations

import re
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import attrs
import pytest

from twisted_vllm.config.describe import describe
from twisted_vllm.config.document import parse
from twisted_vllm.config.environment import VARIABLES
from twisted_vllm.config.load import document, load
from twisted_vllm.config.models import entry
from twisted_vllm.config.passthrough import ROUTE_CLASSES, server_override
from twisted_vllm.config.settings import (
    EndUserSettings,
    LedgerSettings,
    Limits,
    LogSettings,
    PriceList,
    Settings,
    TenantRoutes,
    Timeouts,
)
from twisted_vllm.config.shape import Section

DIRECTORY = Path(__file__).parents[2] / "config"
EXAMPLE = DIRECTORY / "example.yaml"
UNIT = DIRECTORY / "vllm-passthrough.service"
ENVIRON = {"LITELLM_MASTER_KEY": "sk-example-master", "HOSTED_VLLM_API_KEY": "example-server-key"}


@pytest.fixture(scope="module")
def example() -> Settings:
    return load(file=str(EXAMPLE), environ=ENVIRON)


def test_the_example_loads_without_a_warning(example):
    assert example.warnings == ()


def test_the_example_needs_only_the_variables_that_it_names():
    named = set(re.findall(r"^[^#\n]*os\.environ/(\w+)", EXAMPLE.read_text("utf-8"), re.MULTILINE))
    assert named == set(ENVIRON)


def test_the_defaults_that_the_example_shows_are_the_defaults(example):
    bare = load(file=None, environ={"HOSTED_VLLM_API_BASE": "http://127.0.0.1:8000"} | ENVIRON)
    assert attrs.evolve(example, models=()) == bare


def missing_names(section: Section[Any], written: Any, path: str = "") -> list[str]:
    missing = [f"{path}{name}" for name in section.fields if name not in written]
    for name, checker in section.fields.items():
        if isinstance(checker, Section) and name in written:
            missing += missing_names(checker, written[name] or {}, f"{path}{name}.")
    return missing


def test_every_setting_stands_in_the_example():
    written = parse(EXAMPLE.read_text("utf-8"), "example.yaml")
    (override, *_) = written["passthrough"]["servers"].values()
    assert missing_names(document, written) == []
    assert missing_names(entry, written["model_list"][0]) == []
    assert missing_names(server_override, override) == []


def test_every_variable_and_every_class_of_routes_stands_in_the_example():
    text = EXAMPLE.read_text("utf-8")
    names = {names[0] for names in VARIABLES.values()} | {names[-1] for names in VARIABLES.values()}
    assert [name for name in sorted(names | set(ROUTE_CLASSES)) if name not in text] == []


@pytest.mark.parametrize(
    "values", [Limits, Timeouts, LogSettings, TenantRoutes, LedgerSettings, EndUserSettings, PriceList]
)
def test_every_field_of_the_settings_can_be_written(values):
    own = document.fields["passthrough"]
    sections = [checker for checker in own.fields.values() if isinstance(checker, Section)]
    (section,) = [section for section in sections if section.build is values]
    assert set(section.fields) == {field.name for field in attrs.fields(values)}


def test_the_description_of_the_example_names_no_secret(example):
    assert not [line for line in describe(example) if any(secret in line for secret in ENVIRON.values())]


@pytest.fixture(scope="module")
def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read(UNIT, "utf-8")
    return parser


def test_the_unit_runs_the_gateway_in_the_foreground_with_secrets_from_a_file(unit):
    service = unit["Service"]
    assert re.fullmatch(r"/\S+/bin/twistd -n --pidfile= vllm-passthrough --config /etc/\S+\.yaml", service["ExecStart"])
    assert service["EnvironmentFile"].startswith("/etc/")
    assert not [name for names in VARIABLES.values() for name in names if f"{name}=" in service["ExecStart"]]
    assert "Environment" not in service


def test_the_unit_waits_longer_than_running_requests_are_given(unit):
    assert int(unit["Service"]["TimeoutStopSec"]) > attrs.fields(Settings).drain_timeout.default


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("CapabilityBoundingSet", ""),
        ("StateDirectory", "vllm-passthrough"),
    ],
)
def test_the_unit_confines_the_gateway(unit, setting, value):
    assert unit["Service"][setting] == value
