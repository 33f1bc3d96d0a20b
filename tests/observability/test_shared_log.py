"""A log that several processes write: its lines stay whole, and none is lost when the file is rotated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from twisted_vllm.config.settings import LogSettings
from twisted_vllm.observability.logging.lines import JsonLines, TextLines
from twisted_vllm.observability.logging.setup import GatewayLog, TwistdLog
from twisted_vllm.observability.logging.sinks import RotatedFile, StreamSink

#: more than a pipe takes at once
LINE = 9_000

TO_STREAM = """
import sys
from twisted_vllm.observability.logging.sinks import StreamSink
sink = StreamSink(sys.stdout, is_shared=True)
for _ in range(200):
    sink.write(sys.argv[1].encode() * 9_000 + b"\\n")
"""

TO_FILE = """
import sys
from twisted_vllm.observability.logging.sinks import RotatedFile
sink = RotatedFile(sys.argv[2], rotate_bytes=20_000, keep_files=int(sys.argv[3]), is_shared=True)
for number in range(300):
    sink.write(f"{sys.argv[1]} {number} {'x' * 400}\\n".encode())
"""


def test_lines_of_several_processes_on_one_pipe_stay_whole() -> None:
    reading, writing = os.pipe()
    running = [subprocess.Popen([sys.executable, "-c", TO_STREAM, name], stdout=writing) for name in "abc"]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [each.wait() for each in running] == [0, 0, 0]
    assert Counter(lines) == {name.encode() * LINE: 200 for name in "abc"}


def test_a_file_that_several_processes_rotate_keeps_every_line_once_and_its_bounds(tmp_path: Path) -> None:
    path = tmp_path / "log"
    running = [subprocess.Popen([sys.executable, "-c", TO_FILE, name, str(path), "100"]) for name in "abc"]
    assert [each.wait() for each in running] == [0, 0, 0]
    files = sorted(tmp_path.iterdir(), key=lambda each: int(each.suffix[1:] or 0), reverse=True)
    found = [line.split(" ")[:2] for file in files for line in file.read_text().splitlines()]
    assert len(found) == 900
    for name in "abc":
        # no line is lost, doubled or in a wrong place
        assert [int(number) for writer, number in found if writer == name] == list(range(300))
    assert all(15_000 < file.stat().st_size <= 20_000 for file in files[:-1])


def test_a_file_that_another_process_moved_gets_no_further_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    one, other = (RotatedFile(str(path), rotate_bytes=10, keep_files=1, is_shared=True) for _ in range(2))
    one.write(b"12345678\n")
    other.write(b"abc\n")
    one.write(b"9\n")
    assert (path.read_bytes(), (tmp_path / "log.1").read_bytes()) == (b"abc\n9\n", b"12345678\n")


def test_what_cannot_be_locked_is_written_all_the_same() -> None:
    with open(os.devnull, "w") as stream:
        StreamSink(stream, is_shared=True).write(b"x\n")


def test_each_line_names_its_process_if_there_are_several() -> None:
    event = {"log_format": "hello", "log_time": 1.0, "log_namespace": "n"}
    assert b'"process":"worker-1"' in JsonLines(process="worker-1").event(event)
    assert b"process" not in JsonLines().event(event)
    assert TextLines(process="worker-1").event(event).startswith(b"1970-01-01T00:00:01.000Z worker-1 info")


def test_the_process_stays_after_a_reload(tmp_path: Path) -> None:
    log = GatewayLog(LogSettings(file=str(tmp_path / "log")), (), sys.__stdout__, TwistdLog(), "worker-2")  # type: ignore[arg-type]  # it is there
    log.prepare(LogSettings(file=str(tmp_path / "other"), format="text"))()
    log.writer.flush()
    log({"log_format": "hello", "log_time": 1.0, "log_namespace": "n"})
    log.writer.flush()
    assert " worker-2 info" in (tmp_path / "other").read_text()
