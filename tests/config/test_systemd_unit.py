"""The systemd units and what belongs to them, that an operator starts from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from twisted_vllm.config.listen import can_be_shared
from twisted_vllm.config.load import variables
from twisted_vllm.config.settings import Settings

CONFIGURATION = Path(__file__).parents[2] / "config"
UNIT = CONFIGURATION / "systemd" / "vllm-passthrough.service"
SOCKET = CONFIGURATION / "systemd" / "vllm-passthrough.socket"
ANALYZE = shutil.which("systemd-analyze")
#: what systemd-analyze security may say at most, in tenths: "under 2" of 10
EXPOSURE = 20


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
    assert re.fullmatch(r"/\S+/bin/vllm-passthrough run --config /etc/\S+\.yaml", service["ExecStart"])
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


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")
def test_systemd_finds_little_that_is_open(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", f"--threshold={EXPOSURE}", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    # a unit that is open is noticed
    open_unit = tmp_path / "vllm-passthrough.service"
    open_unit.write_text("[Service]\nExecStart=/bin/true\n")
    command = [str(ANALYZE), "security", "--offline=true", f"--threshold={EXPOSURE}", str(open_unit)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")
def test_systemd_understands_every_line_of_both_units(tmp_path: Path) -> None:
    for unit in (UNIT, SOCKET):
        # the program need not be here
        text = unit.read_text("utf-8").replace("/opt/vllm-passthrough/bin/vllm-passthrough", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    files = [str(tmp_path / unit.name) for unit in (UNIT, SOCKET)]
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", "--recursive-errors=no", *files],
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = [line for line in done.stderr.splitlines() if "vllm-passthrough" in line and "Failed to" not in line]
    assert told == []


def test_the_socket_is_where_the_gateway_listens_without_it() -> None:
    parser = CaseSensitiveParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.read(SOCKET, "utf-8")
    assert parser["Socket"]["ListenStream"] == "127.0.0.1:4000"
    assert SOCKET.stem == UNIT.stem
    endpoint = re.search(r"listen: (systemd:\S+)", SOCKET.read_text("utf-8"))
    assert endpoint is not None
    assert can_be_shared(endpoint[1])


def test_the_rights_of_files_are_those_that_the_unit_expects() -> None:
    lines = (CONFIGURATION / "systemd" / "tmpfiles.conf").read_text("utf-8").splitlines()
    rows = {cells[1]: cells for cells in map(str.split, lines) if cells and not cells[0].startswith("#")}
    assert rows["/etc/vllm-passthrough/environment"][2:5] == ["0600", "root", "root"]
    assert {cells[0] for cells in rows.values()} <= {"d", "z"}
    assert all(len(cells) == 6 for cells in rows.values())
