"""The systemd unit that an operator starts from."""

from __future__ import annotations

import re
from configparser import RawConfigParser
from pathlib import Path

import pytest

from twisted_vllm.config.load import variables
from twisted_vllm.config.settings import Settings

UNIT = Path(__file__).parents[2] / "config" / "vllm-passthrough.service"


class CaseSensitiveParser(RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture(scope="module")
def unit() -> RawConfigParser:
    parser = CaseSensitiveParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.read(UNIT, "utf-8")
    return parser


def test_the_unit_runs_the_gateway_in_the_foreground_with_secrets_from_a_file(unit: RawConfigParser) -> None:
    service = unit["Service"]
    assert re.fullmatch(r"/\S+/bin/twistd -n --pidfile= vllm-passthrough --config /etc/\S+\.yaml", service["ExecStart"])
    assert service["EnvironmentFile"].startswith("/etc/")
    names = [name for each in variables() for name in each.environment]
    assert not [name for name in names if f"{name}=" in service["ExecStart"]]
    assert "Environment" not in service


def test_the_unit_waits_longer_than_running_requests_are_given(unit: RawConfigParser) -> None:
    assert int(unit["Service"]["TimeoutStopSec"]) > Settings().drain_timeout


def test_the_unit_reloads_by_sighup(unit: RawConfigParser) -> None:
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"


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
def test_the_unit_confines_the_gateway(unit: RawConfigParser, setting: str, value: str) -> None:
    assert unit["Service"][setting] == value
