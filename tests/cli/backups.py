"""Backups made and put back by the command, of gateways in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.end_to_end.process_harness import MeasuredGateway
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, environment
from tests.whole_ledger import check_ledger

#: settings of `passthrough` that have nothing to do with a backup
QUIET = "log: {file: gateway.log, format: json}"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "twisted_vllm", *map(str, arguments)]


def run(directory: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory until it ends."""
    return subprocess.run(
        command(*arguments),
        cwd=directory,
        env=environment(
            **{"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": "http://127.0.0.1:9", **variables}
        ),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def done(directory: Path, *arguments: str | Path, **variables: str) -> str:
    """Run the command, which succeeds; return what it printed."""
    ended = run(directory, *arguments, **variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def refused(directory: Path, *arguments: str | Path, **variables: str) -> str:
    """Run the command, which refuses in one line; return that."""
    ended = run(directory, *arguments, **variables)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if not line.startswith("warning: ")]
    assert ended.stdout == ""
    return line


def restore_elsewhere(backup: Path, directory: Path, **variables: str) -> None:
    """Put a backup into a new directory."""
    directory.mkdir()
    (directory / "gateway.yaml").write_text(f"passthrough: {{{QUIET}}}\n")
    done(directory, "restore", backup, "--config", "gateway.yaml", **variables)


def settle(directory: Path, **variables: str) -> None:
    """Let a gateway start on what is in a directory, add up what its spool has, and end."""
    with MeasuredGateway(directory, 9, **variables) as gateway:
        assert gateway.terminate() == 0
    spool = directory / "twisted_vllm.sqlite3.spool"
    assert not list(spool.glob("*.spool"))


def ids_after_restore(backup: Path, directory: Path, **variables: str) -> list[str]:
    """Put a backup into a new directory, let a gateway settle it, check every sum; return the ids of the requests."""
    restore_elsewhere(backup, directory, **variables)
    settle(directory, **variables)
    rows = check_ledger(variables.get("DATABASE_URL", f"sqlite:////{directory}/twisted_vllm.sqlite3"))
    return [row.id for row in rows]
