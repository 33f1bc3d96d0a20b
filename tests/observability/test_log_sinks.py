from __future__ import annotations

import gc
import os
import stat
import threading
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from twisted_vllm.observability.logging.sinks import INODE_CHECK_SECONDS, ISink, RotatedFile, StreamSink, SyslogSink


class Now:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def open_log(path: Path, rotate_bytes: int = 1000, keep_files: int = 2, now: Now | None = None) -> RotatedFile:
    return RotatedFile(str(path), rotate_bytes=rotate_bytes, keep_files=keep_files, monotonic=now or Now())


def test_every_sink_keeps_the_contract(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        for sink in (StreamSink(stream), open_log(tmp_path / "log"), SyslogSink("test")):
            assert verifyObject(ISink, sink)
            sink.reopen()
            sink.close()


def test_a_new_file_is_the_owner_s_alone(tmp_path: Path) -> None:
    open_log(tmp_path / "log").close()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_the_mode_that_an_operator_gave_stays(tmp_path: Path) -> None:
    (tmp_path / "log").touch(mode=0o640)
    (tmp_path / "log").chmod(0o640)
    open_log(tmp_path / "log").close()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


def test_a_file_that_exists_is_continued(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"old\n")
    log = open_log(tmp_path / "log")
    log.write(b"new\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"old\nnew\n"


def test_a_file_that_cannot_be_opened_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing/log"):
        open_log(tmp_path / "missing" / "log")


def test_a_full_file_is_rotated_and_old_ones_go(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", rotate_bytes=10, keep_files=2)
    for number in range(5):
        log.write(b"line-%d\n" % number)
    log.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "log": b"line-4\n",
        "log.1": b"line-3\n",
        "log.2": b"line-2\n",
    }


def test_nothing_is_kept_where_nothing_is_to_be_kept(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", rotate_bytes=10, keep_files=0)
    log.write(b"line-1\n")
    log.write(b"line-2\n")
    log.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"log": b"line-2\n"}


def test_a_line_larger_than_a_file_is_written_all_the_same(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", rotate_bytes=10)
    log.write(b"a line of more than ten bytes\n")
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_file_that_was_moved_away_is_noticed_within_a_second(tmp_path: Path) -> None:
    now = Now()
    log = open_log(tmp_path / "log", now=now)
    log.write(b"1\n")
    (tmp_path / "log").rename(tmp_path / "moved")
    log.write(b"2\n")
    now.seconds += INODE_CHECK_SECONDS
    log.write(b"3\n")
    log.close()
    assert (tmp_path / "moved").read_bytes() == b"1\n2\n"
    assert (tmp_path / "log").read_bytes() == b"3\n"


def test_reopen_makes_the_next_write_look(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.write(b"1\n")
    (tmp_path / "log").rename(tmp_path / "moved")
    log.reopen()
    log.write(b"2\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"2\n"


def test_two_processes_rotate_a_shared_file_once(tmp_path: Path) -> None:
    one = open_log(tmp_path / "log", rotate_bytes=10, keep_files=5)
    two = open_log(tmp_path / "log", rotate_bytes=10, keep_files=5)
    one.write(b"first\n")
    two.write(b"second\n")
    one.write(b"third\n")
    two.write(b"fourth\n")
    one.close()
    two.close()
    assert (tmp_path / "log.1").read_bytes() == b"first\nsecond\n"
    assert (tmp_path / "log").read_bytes() == b"third\nfourth\n"


def test_a_directory_that_is_gone_does_not_end_the_log(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    now = Now()
    log = open_log(directory / "log", rotate_bytes=10, now=now)
    directory.rename(tmp_path / "gone")
    now.seconds += INODE_CHECK_SECONDS
    log.write(b"line-1\n")
    log.write(b"line-2\n")
    log.close()
    assert (tmp_path / "gone" / "log").read_bytes() == b"line-1\nline-2\n"


def test_a_line_after_one_that_was_torn_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(tmp_path / "log")
    real_write = os.write
    answers = iter([lambda fd, data: real_write(fd, bytes(data)[:3]), lambda fd, data: real_write(-1, data)])
    monkeypatch.setattr(os, "write", lambda fd, data: next(answers, real_write)(fd, data))
    with pytest.raises(OSError):
        log.write(b"torn line\n")
    log.write(b"whole line\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"tor\nwhole line\n"


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    data = b"z" * 1_000_000
    with open(read_end, "rb") as reader, open(write_end, "w") as stream:
        sink = StreamSink(stream)
        thread = threading.Thread(target=sink.write, args=(data,))
        thread.start()
        assert reader.read(len(data)) == data
        thread.join()


def test_a_file_that_nobody_uses_any_more_is_closed(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        RotatedFile(str(tmp_path / "a.log"), rotate_bytes=1000, keep_files=1)
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
