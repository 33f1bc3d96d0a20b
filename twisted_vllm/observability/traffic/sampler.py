"""Reads from the metrics of requests what was counted since the last time. Requests pay nothing for it."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_vllm.observability.metrics.requests import GATEWAY, Pair, RequestMetrics
from twisted_vllm.observability.traffic.causes import cause_of, is_failed
from twisted_vllm.observability.traffic.steps import MAX_NAME, PICO_IN_NANO, ModelStep, Step, places_of


class Sampler:
    """Takes steps. What it has seen of a count stands beside the count, so it ends with it."""

    def __init__(self, counted: RequestMetrics) -> None:
        """Begin with what is counted from now on.

        Args:
            counted: the metrics of requests.
        """
        self._counted = counted
        self._errors = dict(counted.errors)
        self._bounds: tuple[float, ...] = ()
        self._places: Sequence[int] = ()
        self.take(0, 0)

    def take(self, number: int, in_flight: int) -> Step:
        """Return what was counted since the last time.

        Args:
            number: the number of the step.
            in_flight: requests in flight.
        """
        counted = self._counted
        causes: dict[str, int] = {}
        models: dict[str, ModelStep] = {}
        for (model, server, route_class, status, outcome), each in counted.combinations.items():
            count = each.count - each.sampled
            if not count:
                continue
            each.sampled = each.count
            failed = is_failed(status, outcome)
            if route_class == GATEWAY and not failed:
                # of the admin API: to look at the console is no traffic
                continue
            step = models.setdefault(model[:MAX_NAME], ModelStep())
            step.requests += count
            if failed:
                step.failed += count
                cause = cause_of(status, outcome, is_sent=bool(server))
                if cause:
                    causes[cause] = causes.get(cause, 0) + count
        self._read_pairs(models)
        self._read_usage(models)
        for code, total in counted.errors.items():
            count = total - self._errors.get(code, 0)
            if count:
                causes[code] = causes.get(code, 0) + count
                self._errors[code] = total
        return Step(number, in_flight, causes, models)

    def _read_pairs(self, models: dict[str, ModelStep]) -> None:
        for (model, server), pair in self._counted.pairs.items():
            # one comparison for each that had no request
            if not server or pair.duration.sum == pair.sampled_sum:
                continue
            pair.sampled_sum = pair.duration.sum
            step = models.setdefault(model[:MAX_NAME], ModelStep())
            self._read_pair(pair, step)

    def _read_pair(self, pair: Pair, step: ModelStep) -> None:
        if pair.duration.bounds != self._bounds:
            self._bounds = pair.duration.bounds
            self._places = places_of(self._bounds)
        first, duration = pair.first_stream.counts(), pair.duration.counts()
        before = pair.sampled
        if before is None:
            before = (0,) * len(first), (0,) * len(duration)
        pair.sampled = first, duration
        self._add(step.first, before[0], first)
        self._add(step.duration, before[1], duration)

    def _add(self, to: dict[int, int], before: Sequence[int], now: Sequence[int]) -> None:
        """Add the counts that are new to the buckets that take them."""
        for place, former, count in zip(self._places, before, now, strict=True):
            if count != former:
                to[place] = to.get(place, 0) + count - former

    def _read_usage(self, models: dict[str, ModelStep]) -> None:
        for model, usage in self._counted.models.items():
            now = (usage.prompt, usage.cached, usage.completion, usage.cost // PICO_IN_NANO)
            before = usage.sampled
            if now == before:
                continue
            usage.sampled = now
            step = models.setdefault(model[:MAX_NAME], ModelStep())
            step.prompt += now[0] - before[0]
            step.cached += now[1] - before[1]
            step.completion += now[2] - before[2]
            step.cost += now[3] - before[3]
