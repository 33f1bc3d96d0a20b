"""How many budgets are nearly spent. No label names whose: the log and `/key/list` do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.observability.metrics.registry import PREFIX


class BudgetCollector(Collector):
    """Reads on each scrape what the last look through the budgets found."""

    def __init__(
        self, kinds: Sequence[str], shares: Sequence[int], counts: Callable[[], Mapping[tuple[str, int], int]]
    ) -> None:
        """Collect for these kinds of holders.

        Args:
            kinds: the kinds, each of which always has its samples.
            shares: the shares of a budget that are counted, in percent.
            counts: returns how many budgets of a kind have at least so many percent used.
        """
        self._kinds = tuple(kinds)
        self._shares = {share: f"{share / 100:g}" for share in shares}
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        family = GaugeMetricFamily(
            f"{PREFIX}_budgets", "Budgets of which at least a share is used in their period.", labels=["kind", "used"]
        )
        counts = self._counts()
        for kind in self._kinds:
            for percent, used in self._shares.items():
                family.add_metric([kind, used], counts.get((kind, percent), 0))
        yield family
