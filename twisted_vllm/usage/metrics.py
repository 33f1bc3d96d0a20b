"""The ledger's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter

_PREFIX = "vllm_passthrough_ledger"


class LedgerCollector(Collector):
    """Reads the spool and its writer on each scrape, in the reactor's thread."""

    def __init__(self, spool: Spool, writer: LedgerWriter) -> None:
        """Collect from a spool and its writer."""
        self._spool = spool
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics."""
        spool, pending, written = self._spool, self._writer.pending(), self._writer.batch_writer
        gauges: tuple[tuple[str, str, float], ...] = (
            ("spool_rows", "Rows that the database does not have yet, of this process's requests.", pending.rows),
            ("spool_bytes", "Bytes of the spool's files that the database does not have yet.", pending.bytes),
            ("spool_oldest_row_seconds", "Age of the oldest row that waits; 0 without any.", pending.seconds),
            ("spool_writable", "1 if rows can be written to the spool, 0 if its disk fails.", spool.healthy),
            ("unsaved_rows", "Rows that are in memory alone because the spool's disk fails.", spool.unsaved),
            ("gathered_rows", "Rows that the database has, and whose spend or sums it lacks.", pending.gathered),
            (
                "gathered_oldest_row_seconds",
                "How long the oldest of these waits; 0 without any.",
                pending.gathered_seconds,
            ),
            ("database_up", "1 if the database took the last batch of rows, 0 if not.", written.reachable),
        )
        counters = (
            ("rows_spooled", "Rows that were written to the spool.", spool.written),
            ("rows_committed", "Rows that the database took.", written.committed),
            ("rows_lost", "Rows that are in no file and no database: the disk failed for too long.", spool.lost),
            (
                "set_aside",
                "Damaged lines of the spool, and rows that the database rejects, kept in a .damaged file.",
                written.quarantined,
            ),
            ("spool_write_failures", "Attempts to write to the spool that failed.", spool.failures),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        for name, text, value in counters:
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        durations = written.durations
        yield HistogramMetricFamily(
            f"{_PREFIX}_batch_seconds",
            "Seconds that the database took for a batch of rows.",
            durations.buckets(),
            durations.sum,
        )
