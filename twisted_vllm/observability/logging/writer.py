"""Writes the log in a thread, so that a slow disk or a stalled pipe never blocks the reactor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from twisted_vllm.observability.logging.sinks import ISink

MAX_QUEUED_BYTES = 8 * 1024 * 1024
#: about how many bytes the sink gets at a time
WRITE_BYTES = 256 * 1024
#: how long the thread collects lines after the first one, in seconds: waking it for each line would cost the reactor
#: more than the line
LINGER_SECONDS = 0.02
#: how long `LogWriter.flush` and `LogWriter.stop` wait for a sink that blocks, in seconds
FLUSH_SECONDS = 2.0


class LogWriter:
    """Queues lines from any thread and writes them in its own.

    Lines that do not fit into the queue are dropped and counted. Once the sink takes lines again, one line says how
    many were dropped. Before `start`, lines are only queued: twistd forks after its first lines, and threads do not
    survive a fork.

    Attributes:
        sink: where the lines are written.
        dropped: how many lines were dropped since the start of the process.
    """

    def __init__(
        self,
        sink: ISink,
        dropped_line: Callable[[int], bytes],
        *,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        """Make a writer that does not write yet.

        Args:
            sink: where the lines are written.
            dropped_line: formats the line that says how many lines were dropped.
            max_queued_bytes: the most bytes that are queued.
            linger_seconds: how long lines are collected before they are written.
        """
        self.sink = sink
        self.dropped = 0
        self._dropped_line = dropped_line
        # what is to be written before the next change of the sink, and that change
        self._before: list[tuple[list[bytes], ISink, Callable[[int], bytes]]] = []
        self._max_queued_bytes = max_queued_bytes
        self._linger_seconds = linger_seconds
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._queued_bytes = 0
        self._reported = 0
        self._is_woken = False
        self._is_finishing = False
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Queue one line with its newline. Never raises, and never blocks before `finish`."""
        with self._lock:
            queued = self._queued_bytes + len(line)
            if queued > self._max_queued_bytes:
                self.dropped += 1
                return
            self._queued_bytes = queued
            self._lines.append(line)
            is_first = not self._is_woken
            if is_first:
                self._is_woken = True
                self._idle.clear()
        if is_first:
            self._wake.set()
        if self._is_finishing and not self.flush():
            # The sink blocks: do not wait again for each of the last lines.
            self._is_finishing = False

    def reconfigure(self, sink: ISink, dropped_line: Callable[[int], bytes]) -> None:
        """Write the next lines elsewhere, and close the former sink once it has those that are queued.

        Never blocks. The arguments are the constructor's.
        """
        with self._lock:
            lines, self._lines = self._lines, []
            self._before.append((lines, sink, dropped_line))
            self._is_woken = True
            self._idle.clear()
        self._wake.set()

    def reopen(self) -> None:
        """Reopen the sink before the next write. Any thread or signal handler may call it."""
        self.sink.reopen()

    def start(self) -> None:
        """Start the thread. Idempotent."""
        if self._thread is None:
            self._stopping.clear()
            self._is_finishing = False
            # A daemon thread: a sink that blocks for ever must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
            self._thread.start()

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Wait until the queue is written.

        Args:
            timeout: how long to wait for a sink that blocks, in seconds.

        Returns:
            Whether everything was written in time.
        """
        if self._thread is None:
            self._write_queued()
            return True
        return self._idle.wait(timeout)

    def finish(self) -> None:
        """Write what is queued, and from now on each line before `write` returns: the process is about to end."""
        self._is_finishing = True
        self._is_finishing = self.flush()

    def stop(self, timeout: float = FLUSH_SECONDS) -> None:
        """Write what is queued and end the thread.

        Args:
            timeout: how long to wait for a sink that blocks, in seconds. Then its lines are lost.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            self._write_queued()
        else:
            self._stopping.set()
            self._wake.set()
            thread.join(timeout)
            if thread.is_alive():
                return
        self.sink.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            self._wake.clear()
            if not self._is_finishing:
                self._stopping.wait(self._linger_seconds)
            self._write_queued()
        # Lines that were queued during the last write.
        self._write_queued()

    def _write_queued(self) -> None:
        with self._lock:
            self._is_woken = False
            before, self._before = self._before, []
            lines, self._lines = self._lines, []
        for earlier, sink, dropped_line in before:
            self._write_lines(earlier)
            former, self.sink, self._dropped_line = self.sink, sink, dropped_line
            if former is not sink:
                former.close()
        self._write_lines(lines)
        with self._lock:
            if not self._is_woken:
                self._idle.set()

    def _write_lines(self, lines: list[bytes]) -> None:
        for piece in _pieces(lines):
            data = b"".join(piece)
            is_written = self._put(data)
            with self._lock:
                # Only now, as lines that are being written count as queued.
                self._queued_bytes -= len(data)
                if not is_written:
                    self.dropped += len(piece)
        lost = self.dropped - self._reported
        if lost and self._put(self._dropped_line(lost)):
            self._reported += lost

    def _put(self, data: bytes) -> bool:
        try:
            self.sink.write(data)
        except OSError:
            return False
        return True


def _pieces(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Split lines into pieces of about `WRITE_BYTES`."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= WRITE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
