"""A process that is killed while it moves or drops partitions: the next one finishes what it began."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.partitions_migration_contract import (
    engine_of,
    lookups_of,
    make_former,
    make_new,
    rows_of,
    some_rows,
    sums_of,
)
from tests.storage.retention_contract import Store, at
from twisted_vllm.storage.schema import migrate

#: kills its own process at the given call of a function
_KILL = """
import importlib, os, signal, sys
def kill_at(module, path, calls):
    holder = importlib.import_module(module)
    *parents, name = path.split(".")
    for each in parents:
        holder = getattr(holder, each)
    real, seen = getattr(holder, name), []
    def wrapped(*arguments, **keywords):
        seen.append(1)
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)
    setattr(holder, name, wrapped)
kill_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""

_MIGRATE = """
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
migrate(make_engine(parse_url(Secret(sys.argv[4]))))
"""

_DROP = """
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.usage.database import UsageDatabase
UsageDatabase(Secret(sys.argv[4]), lambda kind, id, time: 0).drop_before(int(sys.argv[5]))
"""


def run_until_killed(script: str, step: str, *arguments: str) -> None:
    module, path, calls = step.split()
    command = [sys.executable, "-c", _KILL + script, module, path, calls, *arguments]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "step",
    [
        "twisted_vllm.storage.migrations.moved_rows _add_lookups 2",
        "twisted_vllm.storage.migrations.moved_rows os.rename 2",
        "twisted_vllm.storage.migrations.moved_rows _sync 5",
        "twisted_vllm.storage.migrations.moved_sums _drop_helpers 1",
        "twisted_vllm.storage.schema _give_space_back 1",
    ],
)
def test_a_killed_migration_loses_nothing(tmp_path: Path, step: str) -> None:
    rows, url = some_rows(), f"sqlite:///{tmp_path}/keys.sqlite"
    make_former(url, rows).dispose()
    run_until_killed(_MIGRATE, step, url)
    migrated, fresh = engine_of(url), make_new(f"sqlite:///{tmp_path}/fresh.sqlite", rows)
    migrate(migrated)
    assert rows_of(migrated) == rows_of(fresh)
    assert lookups_of(migrated) == lookups_of(fresh)
    assert sums_of(migrated) == sums_of(fresh)
    migrated.dispose()
    fresh.dispose()


@pytest.mark.parametrize(
    "step",
    [
        "twisted_vllm.storage.usage.retention _set_aside 1",
        "twisted_vllm.storage.usage.retention _set_aside 2",
        "pathlib Path.rename 1",
        "pathlib Path.rename 2",
        "pathlib Path.rename 3",
        "pathlib Path.unlink 1",
        "pathlib Path.unlink 2",
    ],
)
def test_a_killed_drop_is_finished_by_the_next(tmp_path: Path, step: str) -> None:
    store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
    store.write("2026-02-02", "2026-03-02", "2026-06-15")
    store.close()
    run_until_killed(_DROP, step, store.url, str(at("2026-04-01")))
    store = Store(store.url)
    store.database.drop_before(at("2026-04-01"))
    assert store.partitions == ["2026-06"]
    assert {each.name.partition(".")[0] for each in (tmp_path / "keys.sqlite-usage").iterdir()} == {"2026-06"}
    assert len(store.rows) == 1
    assert store.requests == 3
    # the time can be used again
    store.periods.reconfigure(None)
    store.write("2026-03-03")
    assert len(store.rows) == 2
    store.close()
