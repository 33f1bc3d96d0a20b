"""What passed through the gateway in one step of time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

#: The upper bounds of the buckets of all durations here, in seconds. The buckets of the metrics are a setting, and what
#: they counted is put into these.
BOUNDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0),
)

#: the most models and causes of errors of their own in a step: those with the most requests; the others are one
MOST_MODELS, MOST_CAUSES = 10, 20
#: stands for all models, or causes, that have no place of their own
OTHER = "other"
#: the longest name of a model, in characters
MAX_NAME = 100

#: A cost is in nanodollars here: picodollars of a day may be more than 64 bits hold.
PICO_IN_NANO = 1_000

#: how many measurements are in a bucket, by its place
Buckets = dict[int, int]


class ModelStep(msgspec.Struct, array_like=True, gc=False):
    """What passed of one model.

    Attributes:
        requests: those that are over.
        failed: those of them that failed, as `twisted_vllm.observability.traffic.causes` says.
        prompt, cached, completion: tokens of requests that are over.
        cost: in nanodollars.
        first: times to the first event of streams.
        duration: times of whole requests.
    """

    requests: int = 0
    failed: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    cost: int = 0
    first: Buckets = {}
    duration: Buckets = {}

    def add(self, other: ModelStep) -> None:
        """Add what passed elsewhere, or in another step."""
        self.requests += other.requests
        self.failed += other.failed
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.cost += other.cost
        add_buckets(self.first, other.first)
        add_buckets(self.duration, other.duration)


class Step(msgspec.Struct, array_like=True, gc=False):
    """What passed in one step.

    Attributes:
        number: the number of the step: the Unix time of its start, divided by its length.
        in_flight: requests in flight; of several steps, the most.
        causes: errors by cause.
        models: what passed, by the label of the model.
    """

    number: int
    in_flight: int = 0
    causes: dict[str, int] = {}
    models: dict[str, ModelStep] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.in_flight or self.causes or self.models)

    def add(self, other: Step, *, same_time: bool) -> None:
        """Add another step.

        Args:
            other: the step.
            same_time: whether it is that of another process, or another one of this process.
        """
        self.in_flight = self.in_flight + other.in_flight if same_time else max(self.in_flight, other.in_flight)
        for cause, count in other.causes.items():
            self.causes[cause] = self.causes.get(cause, 0) + count
        for name, each in other.models.items():
            self.models.setdefault(name, ModelStep()).add(each)

    def bounded(self) -> Step:
        """Return the step with as many models and causes as one may have."""
        models, causes = self.models, self.causes
        if len(models) > MOST_MODELS:
            busiest = sorted(models, key=lambda name: models[name].requests, reverse=True)
            kept = {name: models[name] for name in busiest[:MOST_MODELS] if name != OTHER}
            rest = ModelStep()
            for name in busiest:
                if name not in kept:
                    rest.add(models[name])
            models = {**kept, OTHER: rest}
        if len(causes) > MOST_CAUSES:
            most = sorted(causes, key=lambda name: causes[name], reverse=True)
            shown = {name: causes[name] for name in most[:MOST_CAUSES] if name != OTHER}
            causes = {**shown, OTHER: sum(causes.values()) - sum(shown.values())}
        return Step(self.number, self.in_flight, causes, models)

    def total(self) -> ModelStep:
        """Return what passed of all models."""
        found = ModelStep()
        for each in self.models.values():
            found.add(each)
        return found


def add_buckets(to: Buckets, counts: Buckets) -> None:
    """Add the counts of buckets to others."""
    for place, count in counts.items():
        to[place] = to.get(place, 0) + count


def places_of(bounds: Sequence[float]) -> tuple[int, ...]:
    """Return for each bucket of a histogram with other bounds the place of the bucket here that takes its counts."""
    last = len(BOUNDS)
    return (*(min(bisect_left(BOUNDS, bound), last) for bound in bounds), last)


def merged(steps: Iterable[Step], number: int = 0) -> Step:
    """Return the sum of several steps of the same processes."""
    found = Step(number)
    for each in steps:
        found.add(each, same_time=False)
    return found


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Step).decode
