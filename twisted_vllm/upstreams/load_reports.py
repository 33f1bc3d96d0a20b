"""What vLLM's ``/metrics`` says of a server's load and of its prefix cache.

Plain Python, and cheap: it looks for a few names in some hundred kB of text and parses nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import msgspec

#: requests in vLLM's own queue (``vllm/v1/metrics/loggers.py``)
WAITING = b"vllm:num_requests_waiting"
#: the share of the KV cache in use, 0.0 to 1.0; the second is its name before vLLM 0.10
KV_USAGE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")

#: requests that the engine works on
RUNNING = b"vllm:num_requests_running"
#: tokens of prompts that were looked up in the prefix cache, and those that it had, since the server's start
CACHE_QUERIES, CACHE_HITS = b"vllm:prefix_cache_queries_total", b"vllm:prefix_cache_hits_total"

#: seconds over which the hits of a prefix cache are summed up
HITS_SECONDS = 60.0
#: reports of these seconds that are kept
MOST_REPORTS = 64

#: lines of one metric that are read: one for each engine of a server with data parallelism
MOST_ENGINES = 256
#: bytes of a line that are read, its labels included
MOST_OF_LINE = 4_096


class LoadReport(msgspec.Struct, frozen=True, gc=False):
    """The load of a server.

    Attributes:
        waiting: Requests in the queues of its engines, all together.
        kv_usage: The share of the KV cache in use, 0.0 to 1.0, averaged over its engines.
        running: Requests that its engines work on, all together; None if it does not say.
        cache_queries: Tokens that were looked up in its prefix cache since its start; None if it does not say.
        cache_hits: Those of them that the cache had.
    """

    waiting: float = 0.0
    kv_usage: float = 0.0
    running: float | None = None
    cache_queries: float | None = None
    cache_hits: float = 0.0


class CacheHits:
    """The hits of one server's prefix cache in the last `HITS_SECONDS`."""

    __slots__ = ("_reports",)

    def __init__(self) -> None:
        """Begin without a report."""
        self._reports: deque[tuple[float, float, float]] = deque(maxlen=MOST_REPORTS)

    def add(self, report: LoadReport, now: float) -> float | None:
        """Count what a server reports; return the share of tokens that its cache had, 0.0 to 1.0.

        Returns:
            The share; None before the second report, and while nothing is looked up.
        """
        reports = self._reports
        if report.cache_queries is None:
            reports.clear()
            return None
        if reports and report.cache_queries < reports[-1][1]:
            # the server was started again
            reports.clear()
        while len(reports) > 1 and reports[1][0] <= now - HITS_SECONDS:
            reports.popleft()
        reports.append((now, report.cache_queries, report.cache_hits))
        queries = report.cache_queries - reports[0][1]
        hits = report.cache_hits - reports[0][2]
        return min(max(hits / queries, 0.0), 1.0) if queries > 0 else None


def read_load(text: bytes) -> LoadReport | None:
    """Read the load from Prometheus' text format; None if it has neither metric."""
    # every line has a line break before it
    text = b"\n" + text
    waiting = list(_values(text, WAITING))
    usage = list(_values(text, KV_USAGE[0])) or list(_values(text, KV_USAGE[1]))
    if not waiting and not usage:
        return None
    return LoadReport(
        sum(waiting),
        min(sum(usage) / len(usage), 1.0) if usage else 0.0,
        _sum(text, RUNNING),
        _sum(text, CACHE_QUERIES),
        _sum(text, CACHE_HITS) or 0.0,
    )


def _sum(text: bytes, name: bytes) -> float | None:
    values = list(_values(text, name))
    return sum(values) if values else None


def _values(text: bytes, name: bytes) -> Iterator[float]:
    """Return the values of a metric's samples that are numbers from 0 on, with labels and without."""
    for begin in (b"\n%b{" % name, b"\n%b " % name):
        at = 0
        for _ in range(MOST_ENGINES):
            at = text.find(begin, at)
            if at < 0:
                break
            at += len(begin)
            end = text.find(b"\n", at, at + MOST_OF_LINE)
            line = text[at : end if end >= 0 else at + MOST_OF_LINE]
            # the value of a label may have a brace, that of a sample has none
            value = _number(line.rpartition(b"}")[2].split(maxsplit=1))
            if value is not None:
                yield value


def _number(fields: list[bytes]) -> float | None:
    try:
        value = float(fields[0])
    except (IndexError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None
