"""Families of samples that are written fast.

A gateway with many models and servers has ten thousand samples of requests. `prometheus_client` takes 5 µs for each, in
which no request is served; these families write one in a tenth of that. To any other reader of metrics they are
ordinary ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from twisted_vllm.histogram import Histogram

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)


class FastFamily(Metric):
    """A family of samples with labels, which writes its own lines.

    Attributes:
        label_names: the names of the labels.
    """

    def __init__(self, name: str, documentation: str, kind: str, label_names: Sequence[str]) -> None:
        """Start without samples; `name` is without ``_total``."""
        super().__init__(name, documentation, kind)
        self.label_names = tuple(label_names)

    def lines(self, openmetrics: bool) -> Iterator[str]:
        """Yield the lines of the family in OpenMetrics, or in Prometheus' text format, each with its line feed."""
        name = f"{self.name}_total" if self.type == "counter" and not openmetrics else self.name
        escaped = _escaped(self.documentation) if openmetrics else self.documentation.replace("\\", r"\\")
        yield f"# HELP {name} {escaped}\n"
        yield f"# TYPE {name} {self.type}\n"
        yield from self._sample_lines()

    def _sample_lines(self) -> Iterator[str]:
        raise NotImplementedError

    def _written(self, values: Sequence[str]) -> str:
        """Return labels as they stand between braces."""
        return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(self.label_names, values, strict=True))

    def _labels(self, values: Sequence[str]) -> dict[str, str]:
        return dict(zip(self.label_names, values, strict=True))


class NumberFamily(FastFamily):
    """A counter or a gauge."""

    def __init__(self, name: str, documentation: str, label_names: Sequence[str], kind: str = "counter") -> None:
        """Start without samples; see `FastFamily`."""
        super().__init__(name, documentation, kind, label_names)
        self._rows: list[tuple[Sequence[str], float]] = []

    def add(self, values: Sequence[str], number: float) -> None:
        """Add a sample with these values of the labels."""
        self._rows.append((values, number))

    @property
    def rows(self) -> Sequence[tuple[Sequence[str], float]]:
        """The values of the labels of each sample, and its number."""
        return self._rows

    @property
    def _sample_name(self) -> str:
        return f"{self.name}_total" if self.type == "counter" else self.name

    @property
    def samples(self) -> list[Sample]:
        """The samples as `prometheus_client` has them."""
        name = self._sample_name
        return [Sample(name, self._labels(values), float(number)) for values, number in self._rows]

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        # `Metric` begins with an empty list
        assert not samples

    def _sample_lines(self) -> Iterator[str]:
        name = self._sample_name
        for values, number in self._rows:
            labels = self._written(values)
            yield f"{name}{{{labels}}} {floatToGoString(number)}\n" if labels else f"{name} {floatToGoString(number)}\n"


class HistogramFamily(FastFamily):
    """A histogram with labels."""

    def __init__(self, name: str, documentation: str, label_names: Sequence[str]) -> None:
        """Start without samples; see `FastFamily`."""
        super().__init__(name, documentation, "histogram", label_names)
        self._rows: list[tuple[Sequence[str], list[tuple[str, float]], float]] = []

    def add(self, values: Sequence[str], histogram: Histogram) -> None:
        """Add a histogram, as it is now, with these values of the labels."""
        self._rows.append((values, histogram.buckets(), histogram.sum))

    def add_counts(self, values: Sequence[str], buckets: list[tuple[str, float]], total: float) -> None:
        """Add what was counted elsewhere; `buckets` are those of `Histogram.buckets`, and `total` is the sum."""
        self._rows.append((values, buckets, total))

    @property
    def rows(self) -> Sequence[tuple[Sequence[str], list[tuple[str, float]], float]]:
        """The values of the labels of each histogram, its buckets and its sum."""
        return self._rows

    @property
    def samples(self) -> list[Sample]:
        """The samples as `prometheus_client` has them."""
        found: list[Sample] = []
        for values, buckets, total in self._rows:
            labels = self._labels(values)
            for bound, count in buckets:
                found.append(Sample(f"{self.name}_bucket", {**labels, "le": bound}, count))
            found.append(Sample(f"{self.name}_count", labels, buckets[-1][1]))
            found.append(Sample(f"{self.name}_sum", labels, total))
        return found

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        assert not samples

    def _sample_lines(self) -> Iterator[str]:
        for values, buckets, total in self._rows:
            labels = self._written(values)
            begin = f"{self.name}_bucket{{{labels}," if labels else f"{self.name}_bucket{{"
            yield "".join([f'{begin}le="{bound}"}} {count}\n' for bound, count in buckets])
            braces = f"{{{labels}}}" if labels else ""
            yield f"{self.name}_count{braces} {buckets[-1][1]}\n{self.name}_sum{braces} {total}\n"


class Collected:
    """The families of a registry: those that write themselves, and others."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Sort the families."""
        self.fast: list[FastFamily] = []
        self._others: list[Metric] = []
        for metric in metrics:
            if isinstance(metric, FastFamily):
                self.fast.append(metric)
            else:
                self._others.append(metric)

    def collect(self) -> Iterable[Metric]:
        """Return the others, as a registry does for `prometheus_client`."""
        return self._others
