"""Workers on PostgreSQL: what one writes, the other has when the answer comes."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.process_harness import served
from tests.end_to_end.test_workers_admin import KEYS, OPTIONS, Server, read_your_writes
from tests.end_to_end.workers_harness import Workers, started


def test_what_one_worker_writes_to_postgresql_the_other_has_at_once(tmp_path: Path, postgresql_url: str) -> None:
    with (
        served(Server()) as server,
        started(Workers(tmp_path, server.port, passthrough=OPTIONS, DATABASE_URL=postgresql_url)) as gateway,
    ):
        assert read_your_writes(gateway, KEYS // 2) == []
