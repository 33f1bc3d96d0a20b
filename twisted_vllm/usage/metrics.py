"""The ledger's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.usage.spool.followed import FollowedSpool
from twisted_vllm.usage.spool.writer_threads import WriterThreads

_PREFIX = "vllm_passthrough_ledger"


class LedgerCollector(Collector):
    """Reads the spool and its writer on each scrape, in the reactor's thread."""

    def __init__(self, spool: FollowedSpool, writer: WriterThreads | None) -> None:
        """Collect from a spool, and from the writer unless another process has it."""
        self._spool = spool
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics."""
        spool = self._spool
        yield _gauge("spool_writable", "1 if rows can be written to the spool, 0 if its disk fails.", spool.healthy)
        yield _gauge("unsaved_rows", "Rows that are in memory alone because the spool's disk fails.", spool.unsaved)
        yield _counter("rows_spooled", "Rows that were written to the spool.", spool.written)
        yield _counter(
            "rows_lost", "Rows that are in no file and no database: the disk failed for too long.", spool.lost
        )
        yield _counter("spool_write_failures", "Attempts to write to the spool that failed.", spool.failures)
        if self._writer is not None:
            yield from _written(self._writer)


def _written(writer: WriterThreads) -> Iterator[Metric]:
    """Yield the metrics of a writer."""
    pending, written = writer.pending(), writer.batch_writer
    yield _gauge("spool_rows", "Rows that the database does not have yet.", pending.rows)
    yield _gauge("spool_bytes", "Bytes of the spool's files that the database does not have yet.", pending.bytes)
    yield _gauge("spool_oldest_row_seconds", "Age of the oldest row that waits; 0 without any.", pending.seconds)
    yield _gauge("gathered_rows", "Rows that the database has, and whose spend or sums it lacks.", pending.gathered)
    yield _gauge(
        "gathered_oldest_row_seconds", "How long the oldest of these waits; 0 without any.", pending.gathered_seconds
    )
    yield _gauge("database_up", "1 if the database took the last batch of rows, 0 if not.", written.reachable)
    yield _counter("rows_committed", "Rows that the database took.", written.committed)
    yield _counter(
        "set_aside",
        "Damaged lines of the spool, and rows that the database rejects, kept in a .damaged file.",
        written.quarantined,
    )
    yield HistogramMetricFamily(
        f"{_PREFIX}_batch_seconds",
        "Seconds that the database took for a batch of rows.",
        written.durations.buckets(),
        written.durations.sum,
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
