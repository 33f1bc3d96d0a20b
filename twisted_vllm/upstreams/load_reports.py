"""What vLLM's ``/metrics`` says of a server's load.

Plain Python, and cheap: it looks for two names in some hundred kB of text and parses nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

#: requests in vLLM's own queue (``vllm/v1/metrics/loggers.py``)
WAITING = b"vllm:num_requests_waiting"
#: the share of the KV cache in use, 0.0 to 1.0; the second is its name before vLLM 0.10
KV_USAGE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")

#: lines of one metric that are read: one for each engine of a server with data parallelism
MOST_ENGINES = 256
#: bytes of a line that are read, its labels included
MOST_OF_LINE = 4_096


class LoadReport(msgspec.Struct, frozen=True, gc=False):
    """The load of a server.

    Attributes:
        waiting: Requests in the queues of its engines, all together.
        kv_usage: The share of the KV cache in use, 0.0 to 1.0, averaged over its engines.
    """

    waiting: float = 0.0
    kv_usage: float = 0.0


def read_load(text: bytes) -> LoadReport | None:
    """Read the load from Prometheus' text format; None if it has neither metric."""
    # every line has a line break before it
    text = b"\n" + text
    waiting = list(_values(text, WAITING))
    usage = list(_values(text, KV_USAGE[0])) or list(_values(text, KV_USAGE[1]))
    if not waiting and not usage:
        return None
    return LoadReport(sum(waiting), min(sum(usage) / len(usage), 1.0) if usage else 0.0)


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
