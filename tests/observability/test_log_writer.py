from __future__ import annotations

import os
import threading

from zope.interface import implementer

from twisted_vllm.observability.logging.sinks import ISink, StreamSink
from twisted_vllm.observability.logging.writer import WRITE_BYTES, LogWriter

#: seconds that a thread is given before a test calls it stuck
PATIENCE = 10.0


@implementer(ISink)
class Held:
    """A sink that keeps what it is given, and blocks or fails on demand."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.error: OSError | None = None
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.pieces.append(data)

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    @property
    def lines(self) -> list[bytes]:
        return b"".join(self.pieces).splitlines()


def make_writer(sink: ISink, max_queued_bytes: int = 1000) -> LogWriter:
    return LogWriter(sink, lambda count: b"lost %d\n" % count, max_queued_bytes=max_queued_bytes, linger_seconds=0.001)


def test_lines_come_out_whole_and_in_order() -> None:
    sink = Held()
    writer = make_writer(sink, max_queued_bytes=1_000_000)
    writer.start()
    for number in range(1000):
        writer.write(b"%d\n" % number)
    writer.stop()
    assert sink.lines == [b"%d" % number for number in range(1000)]
    assert sink.is_closed


def test_lines_of_several_threads_are_all_written() -> None:
    sink = Held()
    writer = make_writer(sink, max_queued_bytes=1_000_000)
    writer.start()

    def write() -> None:
        for _ in range(500):
            writer.write(b"x\n")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.stop()
    assert len(sink.lines) == 2000


def test_lines_before_the_start_wait_for_it() -> None:
    sink = Held()
    writer = make_writer(sink)
    writer.write(b"starting up\n")
    assert sink.lines == []
    writer.start()
    assert sink.entered.wait(PATIENCE)
    writer.stop()
    assert sink.lines == [b"starting up"]


def test_a_writer_that_never_started_writes_its_lines_when_it_stops() -> None:
    sink = Held()
    writer = make_writer(sink)
    writer.write(b"the start failed\n")
    writer.stop()
    assert sink.lines == [b"the start failed"]


def test_a_stopped_writer_can_start_again() -> None:
    sink = Held()
    writer = make_writer(sink)
    writer.stop()
    writer.start()
    writer.write(b"again\n")
    writer.stop()
    assert sink.lines == [b"again"]


def test_a_sink_that_blocks_costs_lines_and_no_memory_and_says_so_when_it_recovers() -> None:
    sink = Held()
    writer = make_writer(sink, max_queued_bytes=100)
    writer.start()
    sink.open.clear()
    writer.write(b"0" * 49 + b"\n")
    assert sink.entered.wait(PATIENCE)
    # What the sink has in hand counts: one more line fits, and no other.
    for number in (b"1", b"2", b"3"):
        writer.write(number * 49 + b"\n")
    assert writer.dropped == 2
    sink.open.set()
    writer.stop()
    assert sink.lines == [b"0" * 49, b"lost 2", b"1" * 49]


def test_a_full_disk_costs_lines_and_says_so_when_there_is_room_again() -> None:
    sink = Held()
    writer = make_writer(sink)
    sink.error = OSError(28, "No space left on device")
    writer.write(b"one\n")
    writer.write(b"two\n")
    writer.stop()
    assert writer.dropped == 2
    sink.error = None
    writer.write(b"three\n")
    writer.stop()
    assert sink.lines == [b"three", b"lost 2"]


def test_a_sink_that_never_returns_does_not_hold_up_the_end() -> None:
    sink = Held()
    writer = make_writer(sink)
    writer.start()
    sink.open.clear()
    writer.write(b"stuck\n")
    assert sink.entered.wait(PATIENCE)
    writer.stop(timeout=0.01)
    assert not sink.is_closed
    sink.open.set()


def test_after_the_finish_a_line_is_written_before_write_returns() -> None:
    sink = Held()
    writer = make_writer(sink)
    writer.start()
    writer.write(b"queued\n")
    writer.finish()
    assert sink.lines == [b"queued"]
    writer.write(b"the last words\n")
    assert sink.lines == [b"queued", b"the last words"]
    writer.stop()


def test_many_lines_are_written_in_large_pieces() -> None:
    sink = Held()
    writer = make_writer(sink, max_queued_bytes=10 * WRITE_BYTES)
    line = b"x" * 1023 + b"\n"
    for _ in range(3 * WRITE_BYTES // 1024):
        writer.write(line)
    writer.stop()
    assert [len(piece) for piece in sink.pieces] == [WRITE_BYTES] * 3


def test_a_stalled_pipe_does_not_stall_who_logs() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader, open(write_end, "w") as stream:
        writer = make_writer(StreamSink(stream), max_queued_bytes=200_000)
        writer.start()
        line = b"y" * 999 + b"\n"
        for _ in range(1000):
            writer.write(line)
        assert writer.dropped >= 700
        received = b""
        while not received.endswith(b"lost %d\n" % writer.dropped):
            received += os.read(reader.fileno(), 65536)
        writer.stop()
    assert received.count(line) == 1000 - writer.dropped


def test_another_sink_gets_what_is_written_later_and_the_former_what_was_written_before() -> None:
    former, later = Held(), Held()
    writer = make_writer(former)
    former.open.clear()
    writer.start()
    writer.write(b"1\n")
    assert former.entered.wait(PATIENCE)
    writer.write(b"2\n")
    # does not wait for a sink that blocks
    writer.reconfigure(later, lambda count: b"")
    writer.write(b"3\n")
    former.open.set()
    writer.stop()
    assert (former.lines, later.lines) == ([b"1", b"2"], [b"3"])
    assert (former.is_closed, later.is_closed) == (True, True)


def test_a_sink_that_stays_is_not_closed() -> None:
    sink = Held()
    writer = make_writer(sink)
    writer.write(b"1\n")
    writer.reconfigure(sink, lambda count: b"")
    writer.write(b"2\n")
    assert writer.flush()
    assert (sink.lines, sink.is_closed) == ([b"1", b"2"], False)
