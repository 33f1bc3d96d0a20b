"""Files of what is not charged yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from twisted_vllm.usage.spool.pending import PendingFiles


def test_nothing_is_made_before_the_first_file(tmp_path: Path) -> None:
    files = PendingFiles(tmp_path / "background")
    assert files.take_over() == []
    files.remove("resp_1")
    files.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_leaves_is_taken_over_once(tmp_path: Path) -> None:
    first, second, third = (PendingFiles(tmp_path) for _ in range(3))
    first.save("resp_1", b'{"a":1}')
    first.save("resp_2", b"{}")
    first.save("resp_2", b'{"b":2}')
    first.save("resp_3", b"{}")
    first.remove("resp_3")
    # the first lives
    assert second.take_over() == third.take_over() == []
    first.close()
    assert second.take_over() == [("resp_1", b'{"a":1}'), ("resp_2", b'{"b":2}')]
    assert second.take_over() == third.take_over() == []
    second.remove("resp_1")
    second.close()
    assert third.take_over() == [("resp_2", b'{"b":2}')]
    third.remove("resp_2")
    third.close()
    assert list(tmp_path.glob("*.pending")) == []


def test_a_killed_process_leaves_no_lock_for_ever(tmp_path: Path) -> None:
    (tmp_path / "0123456789abcdef.lock").write_bytes(b"")
    assert PendingFiles(tmp_path).take_over() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [b"", b"0", b"00000000 {}\n", b"zzzzzzzz {}\n", b'{"a":1}'])
def test_a_damaged_file_is_removed(tmp_path: Path, left: bytes) -> None:
    first, second = PendingFiles(tmp_path), PendingFiles(tmp_path)
    first.save("resp_1", b"{}")
    first.save("resp_2", b"{}")
    first.close()
    next(tmp_path.glob("*-resp_1.pending")).write_bytes(left)
    assert second.take_over() == [("resp_2", b"{}")]
    assert list(tmp_path.glob("*-resp_1.pending")) == []


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "UPPER-x.pending").write_text("x")
    assert PendingFiles(tmp_path).take_over() == []
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failing_disk_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = PendingFiles(tmp_path / "file" / "background")
    files.save("resp_1", b"{}")
    files.remove("resp_1")
    assert files.take_over() == []
