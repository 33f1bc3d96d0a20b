"""The comparison of telemetry on and off: its receiver, its variants, and the command with tiny loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.processes import ask, environment, running, wait_until_ready
from benchmarks.telemetry.variants import DEFAULT, variants
from twisted_vllm.config.load import load

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120.0


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[int]:
    with ExitStack() as stack:
        log, port_file = tmp_path / "receiver.out", tmp_path / "receiver.port"
        command = [sys.executable, "-m", "benchmarks.telemetry.receiver", str(port_file)]
        process = stack.enter_context(running(command, log, environ=environment(), directory=REPOSITORY))
        wait_until_ready(process, log, port_file.exists)
        yield int(port_file.read_text())


def test_the_receiver_counts_what_is_posted(receiver: int) -> None:
    for body in (b"{}", b"x" * 100_000):
        assert ask("127.0.0.1", receiver, "POST", "/webhook", body=body) == (200, b"{}")
    assert ask("127.0.0.1", receiver, "POST", "/v1/traces", body=b"spans") == (200, b"")
    status, counts = ask("127.0.0.1", receiver, "GET", "/")
    assert (status, json.loads(counts)) == (200, {"/webhook": [2, 100_002], "/v1/traces": [1, 5]})


@pytest.mark.parametrize("name", variants(1))
def test_each_variant_is_a_configuration_that_can_be_used(name: str, tmp_path: Path) -> None:
    section = {"api_base": "http://127.0.0.1:1"} | dict(variants(1)[name])
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps({"general_settings": {"master_key": "sk-1234567890"}, "passthrough": section}))
    settings = load(file=str(file), environ={})
    assert bool(settings.sinks) == ("sinks" in section)
    assert settings.tracing.active == ("tracing" in section)


def test_everything_has_all_that_the_others_have() -> None:
    every = variants(1)
    assert every[DEFAULT] == {}
    assert {setting for settings in every.values() for setting in settings} == set(every["everything"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_the_command_prints_a_row_for_each_variant(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    loads = ["--rounds=1", "--seconds=0.3", "--connections=2", "--streams=4", "--events=4", "--only=webhook"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.telemetry", *loads],
        cwd=REPOSITORY,
        env=kept | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "as installed " in done.stdout and "file and webhook " in done.stdout
    assert "traces" not in done.stdout and "failed" not in done.stdout
    assert list(tmp_path.iterdir()) == []
