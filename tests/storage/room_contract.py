"""What takes room, in every database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.builders import usage_rows
from tests.storage.retention_contract import DAY, Store, at
from twisted_vllm.storage.room import describe
from twisted_vllm.storage.usage.room import Room, measure


def room_of(store: Store, retention: float | None = 90.0 * DAY, spool: Path | None = None) -> Room:
    with store.engine.connect() as connection:
        return measure(connection, retention, spool)


class RoomContract:
    """Fixture: `store`."""

    def test_partitions_tables_and_what_goes_next_are_told(self, store: Store) -> None:
        store.write_rows([*usage_rows(3000, time=at("2026-05-05")), *usage_rows(20, 3000, time=at("2026-06-06"))])
        room = room_of(store)
        assert [(each.name, each.requests, each.missing) for each in room.partitions] == [
            ("2026-06", 20, False),
            ("2026-05", 3000, False),
        ]
        newest, oldest = room.partitions
        assert oldest.bytes > newest.bytes > 0
        assert (oldest.start, oldest.end) == (at("2026-05-01") // 10**6, at("2026-06-01") // 10**6)
        assert room.requests == 3020
        assert room.bytes_per_request is not None
        assert 50 < room.bytes_per_request < 2000
        assert room.bytes > oldest.bytes + newest.bytes
        assert room.next_drop is not None
        assert (room.next_drop.partition, room.next_drop.bytes) == ("2026-05", oldest.bytes)
        assert room.next_drop.at == at("2026-06-01") // 10**6 + 90 * DAY
        names = [each.name for each in room.tables]
        assert {"vllm_passthrough_usage_sums", "vllm_passthrough_audit", "vllm_passthrough_keys"} <= set(names)
        text = "\n".join(describe(room))
        assert "usage_retention drops 2026-05 on 2026-08-30, which gives" in text
        assert "bytes of rows and look-ups for each of 3,020 requests" in text

    def test_an_empty_database_has_no_requests(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "spool").mkdir()
        (tmp_path / "spool" / "segment").write_bytes(b"x" * 70)
        room = room_of(store, None, tmp_path / "spool")
        assert (room.requests, room.bytes_per_request, room.next_drop, room.partitions) == (0, None, None, ())
        assert room.spool_bytes == 70
        assert "nothing is dropped" in "\n".join(describe(room))

    def test_the_command_prints_a_table_or_json_and_no_password(self, store: Store) -> None:
        store.write("2026-06-06")
        command = [sys.executable, "-m", "twisted_vllm.storage.room", "--database-url", store.url]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "2026-06" in printed
        assert "gateway:" not in printed
        found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
        assert found["partitions"][0]["name"] == "2026-06"
        assert found["database"] == store.engine.dialect.name
