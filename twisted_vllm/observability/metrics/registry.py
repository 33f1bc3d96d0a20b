"""The gateway's own metrics, in Prometheus' formats. They are collected at a scrape, and cost nothing between two.

A collection takes milliseconds, and everybody may ask for one: whoever asks too often gets the last one again. What
strangers ask for leaves administrators their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Protocol

import attrs
from prometheus_client import CollectorRegistry, GCCollector, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred

from twisted_vllm.observability.metrics.families import Collected
from twisted_vllm.observability.metrics.names import PREFIX as PREFIX

#: the versions of either format that a client may ask for; empty is any
_VERSIONS = frozenset({"", "0.0.1", "0.0.4", "1.0.0"})


#: collections at once, and in a second: 10 take 20 ms. One that takes longer counts for several.
BURST = PER_SECOND = 10
#: seconds that one may take
_USUAL = 0.005
#: the last line of OpenMetrics
_END = b"# EOF\n"
#: the forms of the last collection to keep: two formats with their versions
_MOST_FORMS = 8
#: about what a sample takes in memory, its labels included
_SAMPLE_BYTES = 600


@attrs.frozen
class Snapshot:
    """All metrics at one moment.

    Attributes:
        time: when they were collected, in Unix seconds.
        families: the families, with the names that administrators see.
    """

    time: float
    families: Sequence[Metric]

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory."""
        return _SAMPLE_BYTES * sum(len(family.samples) for family in self.families)


class Exposes(Protocol):
    """What writes metrics: those of one process, or of several."""

    def expose(self, accept: str, named: bool = False) -> tuple[bytes, str] | Deferred[tuple[bytes, str]]:
        """Return all metrics and their media type, as `Metrics.expose`."""


class Metrics:
    """The metrics of one process. Each has its own registry, as a process may run several gateways."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Add the metrics of the process and of Python.

        Args:
            monotonic: the clock, in seconds.
        """
        self._monotonic = monotonic
        self._registry = CollectorRegistry()
        # what administrators get
        self._named = CollectorRegistry()
        # what administrators get, and whether strangers get it too
        self._collectors: list[tuple[Collector, bool]] = []
        for each in (self._registry, self._named):
            info = Info(PREFIX, "The gateway", registry=each)
            info.info({"version": version("twisted-vllm")})
            self._collectors = [
                (ProcessCollector(registry=each), True),
                (PlatformCollector(registry=each), True),
                (GCCollector(registry=each), True),
                (info, True),
            ]
        #: the collections that strangers and administrators have left, and when they last asked
        self._left = [float(BURST), float(BURST)]
        self._asked = [0.0, 0.0]
        self._last: dict[tuple[str, bool], bytes] = {}

    def add(self, collector: Collector, named: Collector | None = None) -> None:
        """Add a collector.

        Args:
            collector: the collector.
            named: what administrators get in its place: the same metrics, with names that strangers must not learn.
        """
        self._registry.register(collector)
        shown = collector if named is None else named
        self._named.register(shown)
        self._collectors.append((shown, True))

    def add_for_administrators(self, collector: Collector) -> None:
        """Add a collector of which strangers get nothing."""
        self._named.register(collector)
        self._collectors.append((collector, False))

    def families(self) -> Iterator[tuple[Metric, bool]]:
        """Collect all metrics, with the names that administrators see; yield each and whether strangers get it too."""
        for collector, is_open in self._collectors:
            for metric in collector.collect():
                yield metric, is_open

    def snapshot(self, now: float) -> Snapshot:
        """Collect all metrics, with the names that administrators see.

        Args:
            now: the time, in Unix seconds.
        """
        return Snapshot(now, list(self._named.collect()))

    def expose(self, accept: str, named: bool = False) -> tuple[bytes, str]:
        """Return all metrics and their media type: OpenMetrics if the client accepts it, else Prometheus' text.

        Args:
            accept: the request's ``Accept`` header; what cannot be parsed is ignored.
            named: whether an administrator asks.
        """
        encode, content_type = encoder_for(accept)
        began = self._monotonic()
        self._left[named] = min(self._left[named] + (began - self._asked[named]) * PER_SECOND, BURST)
        self._asked[named] = began
        last = self._last.get((content_type, named))
        if last is not None and self._left[named] < 1:
            return last, content_type
        if last is None and len(self._last) >= _MOST_FORMS:
            self._last.clear()
        found = self._last[content_type, named] = self._collect(encode, named)
        self._left[named] -= max(1.0, (self._monotonic() - began) / _USUAL)
        return found, content_type

    def _collect(self, encode: Callable[[Collector], bytes], named: bool) -> bytes:
        return written((self._named if named else self._registry).collect(), encode)


def encoder_for(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Return what writes metrics as a client wants them, and the media type.

    Args:
        accept: the request's ``Accept`` header; what cannot be parsed is ignored.
    """
    return choose_encoder(",".join(filter(_is_known, accept.split(","))))


def written(metrics: Iterable[Metric], encode: Callable[[Collector], bytes]) -> bytes:
    """Write families with an encoder of `encoder_for`."""
    collected = Collected(metrics)
    text = encode(collected)
    if not collected.fast:
        return text
    openmetrics = text.endswith(_END)
    lines = "".join(line for family in collected.fast for line in family.lines(openmetrics)).encode("utf-8", "replace")
    return text.removesuffix(_END) + lines + (_END if openmetrics else b"")


def _is_known(media_range: str) -> bool:
    """Return whether a media range of ``Accept`` asks for a known version, or for none.

    `choose_encoder` fails at a version that is not a number, and accepts versions that do not exist.
    """
    parameters = (parameter.strip().partition("=") for parameter in media_range.split(";")[1:])
    return all(value in _VERSIONS for name, _, value in parameters if name == "version")
