"""The requests of each key, user and team, as far as the settings give them labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from twisted_vllm.auth.records import Principal
from twisted_vllm.context import RequestContext
from twisted_vllm.money import float_dollars
from twisted_vllm.observability.metrics.families import NumberFamily
from twisted_vllm.observability.metrics.model_names import OTHER
from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.observability.metrics.requests import Counted, ModelUsage
from twisted_vllm.observability.metrics.top_callers import TopCallers
from twisted_vllm.usage.records import NOTHING_USED, Payer, Usage


class CallerUsage:
    """What a key, a user or a team used.

    Attributes:
        uses: its requests.
        labels: its names; None before it was used.
        outcomes: its requests by outcome.
        usage: what it used.
    """

    __slots__ = ("labels", "outcomes", "usage", "uses")

    def __init__(self) -> None:
        self.uses = 0
        self.labels: tuple[str, ...] | None = None
        self.outcomes: Counter[str] = Counter()
        self.usage = ModelUsage()


class Kind:
    """Keys, users or teams.

    Attributes:
        name: the name of the label, and of the metrics.
        labels: the names of the labels.
        id_of: returns the id of a caller; empty if it has none.
        values_of: returns the values of the labels.
    """

    def __init__(
        self,
        name: str,
        labels: tuple[str, ...],
        id_of: Callable[[Principal], str],
        values_of: Callable[[Principal], tuple[str, ...]],
    ) -> None:
        self.name = name
        self.labels = labels
        self.id_of = id_of
        self.values_of = values_of


_KINDS = (
    # the master key and anonymous callers have no id
    Kind("key", ("key", "key_hash"), lambda who: who.key_id or who.kind, lambda who: (who.name, who.hash_prefix)),
    Kind("user", ("user",), lambda who: who.user_id or "", lambda who: (who.user_id or "",)),
    Kind("team", ("team",), lambda who: who.team_id or "", lambda who: (who.team_id or "",)),
)

#: keys, users and teams, by the name of their label
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}


def principal_of(payer: Payer) -> Principal:
    """Return who pays for a request that was over long ago, as far as metrics show it."""
    return Principal(
        payer.kind,
        payer.key_name,
        payer.key_hash,
        key_id=payer.key_id,
        user_id=payer.user_id,
        team_id=payer.team_id,
        organization_id=payer.organization_id,
    )


class CallerMetrics(Collector):
    """Counts requests by keys, users or teams, and tells administrators.

    Attributes:
        kind: which of the three.
        top: who has labels of its own.
        nobody: the requests without a key, user or team.
    """

    def __init__(self, kind: Kind, most: int) -> None:
        """Give `most` callers labels of their own."""
        self.kind = kind
        self.top: TopCallers[CallerUsage] = TopCallers(most, CallerUsage)
        self.top.others.labels = (OTHER, *[""] * (len(kind.labels) - 1))
        self.nobody = CallerUsage()
        self.nobody.labels = ("",) * len(kind.labels)

    @property
    def collector(self) -> Collector:
        """This, which tells administrators."""
        return self

    def reconfigure(self, most: int) -> None:
        """Give so many callers labels of their own from now on; what was counted stays."""
        self.top.reconfigure(most)

    def count(self, context: RequestContext, counted: Counted) -> None:
        """Count a request."""
        who = context.principal
        caller = self.nobody if who is None else self._of(who, context.ended)
        caller.outcomes[context.outcome] += 1
        if context.usage is not NOTHING_USED or context.cost:
            caller.usage.add(context.usage, context.cost)

    def charged(self, payer: Payer, model: str, usage: Usage, cost: int, now: float) -> None:
        """Count what a background response used."""
        self._of(principal_of(payer), now).usage.add(usage, cost)

    def _of(self, who: Principal, now: float) -> CallerUsage:
        id = self.kind.id_of(who)
        if not id:
            return self.nobody
        caller = self.top.of(id, now)
        if caller.labels is None:
            caller.labels = self.kind.values_of(who)
        return caller

    def collect(self) -> Iterator[Metric]:
        """Return the current figures."""
        kind = self.kind
        requests = NumberFamily(
            f"{PREFIX}_{kind.name}_requests", f"Requests of each {kind.name}.", [*kind.labels, "outcome"]
        )
        tokens = NumberFamily(
            f"{PREFIX}_{kind.name}_tokens", f"Tokens of requests of each {kind.name}.", [*kind.labels, "type"]
        )
        cost = NumberFamily(
            f"{PREFIX}_{kind.name}_cost_usd", f"What requests of each {kind.name} cost, in US dollars.", kind.labels
        )
        outcomes: Counter[tuple[str, ...]] = Counter()
        used: dict[tuple[str, ...], ModelUsage] = {}
        # two keys may have the same name
        for caller in (*self.top, self.top.others, self.nobody):
            if caller.labels is None:
                continue
            for outcome, count in caller.outcomes.items():
                outcomes[*caller.labels, outcome] += count
            used.setdefault(caller.labels, ModelUsage()).include(caller.usage)
        for labels, count in outcomes.items():
            requests.add(labels, count)
        for labels, usage in used.items():
            if usage.is_any:
                for kind_of_token, number in usage.by_type():
                    tokens.add((*labels, kind_of_token), number)
                cost.add(labels, float_dollars(usage.cost))
        yield from (requests, tokens, cost)
