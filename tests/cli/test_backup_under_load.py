"""Backups of gateways that serve: a restore has every acknowledged request once, and sums of exactly these."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.backups import done, ids_after_restore
from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import MeasuredGateway, served

#: backups while the callers call
BACKUPS = 2


@pytest.mark.parametrize("workers", [1, 2])
def test_each_request_before_a_backup_is_there_once_after_a_restore_and_all_sums_are_those_of_the_rows(
    tmp_path: Path, workers: int
) -> None:
    directory = tmp_path / "serving"
    directory.mkdir()
    make_keys(f"sqlite:////{directory}/twisted_vllm.sqlite3")
    callers = Callers(pause=0.001)
    acknowledged: list[set[str]] = []
    names = []
    with (
        served(serve) as server,
        MeasuredGateway(directory, server.port, f"--workers={workers}", passthrough=PRICED) as gateway,
        callers.calling([gateway.port]),
    ):
        try:
            for number in range(BACKUPS):
                time.sleep(0.5)
                names.append(tmp_path / f"{number}.tar.{('gz', 'zst')[number % 2]}")
                acknowledged.append(set(callers.seen))
                done(directory, "backup", "--config", "gateway.yaml", "--output", names[-1])
        finally:
            callers.stop.set()
    assert not callers.refused
    for number, name in enumerate(names):
        found = Counter(ids_after_restore(name, tmp_path / f"restored-{number}"))
        assert set(found.values()) == {1}
        assert acknowledged[number] <= set(found)
        assert set(found) <= set(callers.seen)
        assert len(acknowledged[number]) > 100
