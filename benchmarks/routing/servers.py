"""What a vLLM server says of its prefix cache, and how it is emptied."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import attrs
import msgspec

from benchmarks.client import Target
from benchmarks.processes import CannotStart, ask

_RESET_SECONDS = 20.0
_SAMPLE = r"^{name}(?:\{{[^}}]*\}})? (\S+)$"
_HITS, _QUERIES, _ANSWERS = (
    re.compile(_SAMPLE.format(name=f"vllm:{name}_total"), re.MULTILINE)
    for name in ("prefix_cache_hits", "prefix_cache_queries", "request_success")
)


@attrs.frozen
class Counters:
    """Counters of one server, or what they grew by.

    Attributes:
        hits: prompt tokens that were found in the prefix cache.
        queries: prompt tokens that were looked for.
        answers: requests that ended well.
    """

    hits: float
    queries: float
    answers: float

    def since(self, before: Counters) -> Counters:
        """Return what was added."""
        return Counters(self.hits - before.hits, self.queries - before.queries, self.answers - before.answers)


def read_counters(exposition: str) -> Counters:
    """Read the counters of vLLM's ``/metrics``: the sums over engines and finish reasons."""
    hits, queries, answers = (sum(map(float, each.findall(exposition))) for each in (_HITS, _QUERIES, _ANSWERS))
    return Counters(hits, queries, answers)


def counters(server: Target) -> Counters:
    """Ask a server for its counters.

    Raises:
        CannotStart: it does not answer.
    """
    try:
        status, body = ask(server.host, server.port, "GET", f"{server.base}/metrics", key=server.key)
    except OSError as error:
        raise CannotStart(f"http://{server.host}:{server.port}/metrics: {error}") from error
    if status != 200:
        raise CannotStart(f"http://{server.host}:{server.port}/metrics answered {status}")
    return read_counters(body.decode())


def reset(server: Target, model: str) -> None:
    """Empty a server's prefix cache. It can do so only while nothing runs, so this waits a little for the last request.

    Then one short request: vLLM publishes that the cache was emptied with its next step.

    Args:
        server: the server.
        model: what it serves.

    Raises:
        CannotStart: it cannot.
    """
    end = time.monotonic() + _RESET_SECONDS
    while True:
        status, body = ask(
            server.host, server.port, "POST", f"{server.base}/reset_prefix_cache", key=server.key, body=b""
        )
        if status == 404:
            raise CannotStart(
                f"http://{server.host}:{server.port} has no /reset_prefix_cache: start vLLM with "
                "VLLM_SERVER_DEV_MODE=1, so that each run begins with empty caches"
            )
        if status == 200 and b"false" not in body:
            ask(server.host, server.port, "POST", f"{server.base}/v1/completions", key=server.key, body=_short(model))
            return
        if time.monotonic() > end:
            raise CannotStart(f"http://{server.host}:{server.port}/reset_prefix_cache: {status} {body[:100]!r}")
        time.sleep(0.2)


def _short(model: str) -> bytes:
    return msgspec.json.encode({"model": model, "prompt": "x", "max_tokens": 1})


@attrs.frozen
class Outcome:
    """What one run did to the caches.

    Attributes:
        hit_ratio: prompt tokens found in a cache, of all; None without any.
        busiest: the share of the requests that the busiest server answered; None without any.
    """

    hit_ratio: float | None
    busiest: float | None


def outcome(added: Sequence[Counters]) -> Outcome:
    """Return the outcome of what the counters of all servers grew by."""
    queries = sum(each.queries for each in added)
    answers = sum(each.answers for each in added)
    return Outcome(
        sum(each.hits for each in added) / queries if queries else None,
        max(each.answers for each in added) / answers if answers else None,
    )
