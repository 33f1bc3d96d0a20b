"""Finds the servers that may serve a model.

Entries of ``model_list`` with one ``model_name`` are a model group (LiteLLM's word): they share its requests by the
group's routing strategy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from twisted_vllm.config.log_bodies import MODES
from twisted_vllm.config.name_patterns import NamePattern, callers_name, filled, is_pattern, specificity
from twisted_vllm.config.settings import ModelEntry, RetrySettings, RoutingSettings, Server
from twisted_vllm.errors import ModelNotFound
from twisted_vllm.upstreams.entry_limits import EntryLimits
from twisted_vllm.upstreams.fair_queue import FairQueue
from twisted_vllm.upstreams.policies import Policy, make_policy
from twisted_vllm.upstreams.prefix_table import CacheTable, PrefixTable
from twisted_vllm.upstreams.retry_budget import RetryBudget
from twisted_vllm.upstreams.server_state import Servers, ServerState

#: characters of a caller's model name to quote in a message
CLIP = 100


class Destination:
    """One way to serve a model group: a server and its name of the model.

    Attributes:
        server: the server.
        state: what is known of it.
        upstream_model: the server's name of the model, perhaps with wildcards; None if it is the group's, or the
            request's own.
        entry: the entry whose price and name count; None if there is none.
        weight: its share of the group's requests, above 0.
        order: destinations with a lower number are used first.
        limits: the limits of the entry; None without.
        key: the name by which the group's policy knows it: the server's, and its model where one server has two.
    """

    __slots__ = ("entry", "key", "limits", "order", "server", "state", "upstream_model", "weight")

    def __init__(
        self,
        server: Server,
        state: ServerState,
        upstream_model: str | None = None,
        entry: ModelEntry | None = None,
        limits: EntryLimits | None = None,
    ) -> None:
        self.server = server
        self.state = state
        self.upstream_model = upstream_model
        self.entry = entry
        self.weight = 1 if entry is None else entry.weight
        self.order = 1 if entry is None else entry.order
        self.limits = limits
        self.key = state.name

    def __repr__(self) -> str:
        return f"<Destination {self.state.name} {self.upstream_model}>"


class ModelGroup:
    """The destinations of one model name.

    Attributes:
        name: the model's name; empty for requests without a model, or with one that no entry has.
        pattern: the name as a pattern, if it has wildcards: one group serves all models that it matches.
        of_pattern: whether it is one model of such a group, which has fallbacks of its own.
        destinations: all of them, in the order of the file.
        tiers: the same by `Destination.order`, the first to be used first.
        lone: the destination, if there is only one and it has no limit of its own; else None.
        dearest: the destination with the highest price.
        strategy: the name of its routing strategy.
        policy: chooses among destinations.
        queue: the requests that wait for one of its servers.
        budget: how many of its requests may be sent again.
        fallbacks: the models to try in its place.
        context_fallbacks: the models to try when a prompt is too long for it.
        counts_tokens: whether one of its entries has a ``tpm``.
        log_bodies: what its entries say about keeping prompts and answers (`twisted_vllm.config.log_bodies`); if they
            differ, what keeps least; None if they say nothing.
        successor: the group that took its place when the router was updated; None while it is in use.
    """

    __slots__ = (
        "budget",
        "context_fallbacks",
        "counts_tokens",
        "dearest",
        "destinations",
        "fallbacks",
        "log_bodies",
        "lone",
        "name",
        "of_pattern",
        "pattern",
        "policy",
        "queue",
        "strategy",
        "successor",
        "tiers",
    )

    def __init__(
        self,
        name: str,
        destinations: Iterable[Destination],
        strategy: str,
        policy: Policy,
        fallbacks: tuple[str, ...] = (),
        context_fallbacks: tuple[str, ...] = (),
        retry_share: float = 0.0,
    ) -> None:
        self.name = name
        self.pattern: NamePattern | None = None
        self.of_pattern = False
        self.destinations = tuple(destinations)
        orders = sorted({each.order for each in self.destinations})
        self.tiers = tuple(tuple(each for each in self.destinations if each.order == order) for order in orders)
        times = Counter(each.state for each in self.destinations)
        for each in self.destinations:
            if times[each.state] > 1:
                each.key = f"{each.state.name} {each.upstream_model}"
        first = self.destinations[0]
        self.lone = first if len(self.destinations) == 1 and first.limits is None else None
        self.dearest = max(self.destinations, key=lambda each: _price(each.entry))
        self.counts_tokens = any(each.limits is not None and each.limits.tpm is not None for each in self.destinations)
        said = [each.entry.log_bodies for each in self.destinations if each.entry is not None and each.entry.log_bodies]
        self.log_bodies = min(said, key=MODES.index, default=None)
        self.strategy = strategy
        self.policy = policy
        # two entries may be of one server
        servers = {each.server.url: each.server for each in self.destinations}
        self.queue: FairQueue[Any] = FairQueue(sum(server.max_queued_requests for server in servers.values()))
        self.budget = RetryBudget(retry_share, 0.0)
        self.fallbacks = fallbacks
        self.context_fallbacks = context_fallbacks
        self.successor: ModelGroup | None = None

    @property
    def current(self) -> ModelGroup:
        """The group that is in its place now."""
        group = self
        while group.successor is not None:
            group = group.successor
        return group

    def succeed(self, previous: ModelGroup) -> None:
        """Take the place of a group: what waits there, waits for these servers. Its budget goes on counting."""
        previous.queue.capacity = self.queue.capacity
        previous.budget.share = self.budget.share
        self.queue, self.budget = previous.queue, previous.budget
        previous.successor = self

    def calmest(self) -> Destination:
        """Return the destination with the fewest requests for its weight, of those that work if any does."""
        return min(
            self.destinations,
            key=lambda each: (not each.state.breaker.closed or each.state.rests, each.state.in_flight / each.weight),
        )

    def __repr__(self) -> str:
        return f"<ModelGroup {self.name!r} {list(self.destinations)}, {len(self.queue)} queued>"


#: what makes an entry the same after a reload: its name, its server and the server's name of the model
_Identity = tuple[str, bytes, str]


def _identity(entry: ModelEntry) -> _Identity:
    return entry.model_name, entry.server.url, entry.upstream_model


def _name_of(entry: ModelEntry) -> str:
    """Return the same as text, for other processes."""
    return json.dumps([entry.model_name, entry.server.url.decode("latin-1"), entry.upstream_model])


#: makes the limits of an entry from a name that no other has, its ``rpm`` and its ``tpm``
MakeLimits = Callable[[str, int | None, int | None], EntryLimits]

_FREE = Decimal(0)


def _price(entry: ModelEntry | None) -> tuple[Decimal, ...]:
    """Return an entry's prices, in the order in which they decide which entry is dearer."""
    if entry is None:
        return ()
    prices = entry.prices
    return (
        prices.output_cost_per_token or _FREE,
        prices.input_cost_per_token or _FREE,
        prices.input_cost_per_second or _FREE,
        prices.input_cost_per_request or _FREE,
    )


class Router:
    """Finds the model group of each request.

    Attributes:
        servers: the states of all servers.
        default: the group of the default server, for models without an entry; None if there is no default server.
        changes: how often the model groups were replaced.
    """

    default: ModelGroup | None

    def __init__(
        self,
        models: Sequence[ModelEntry],
        default_server: Server | None,
        *,
        servers: Servers,
        routing: RoutingSettings,
        random: Callable[[], float],
        retry_share: float = RetrySettings().budget,
        make_table: Callable[[], CacheTable] = PrefixTable,
        make_limits: MakeLimits | None = None,
    ) -> None:
        """Set up; the arguments are those of `update`, and:

        Args:
            servers: the states of all servers.
            random: a random number from 0.0 to below 1.0.
            make_table: makes what a policy keeps of the servers' prefix caches.
            make_limits: makes what counts the requests of an entry, if this process does not count them alone.
        """
        self.servers = servers
        self.default = None
        self.changes = 0
        self._make_table = make_table
        self._make_limits = make_limits
        self._random = random
        self._groups: dict[str, ModelGroup] = {}
        self._limits: dict[_Identity, EntryLimits] = {}
        self.update(models, default_server, routing, retry_share)

    def update(
        self,
        models: Sequence[ModelEntry],
        default_server: Server | None,
        routing: RoutingSettings,
        retry_share: float = RetrySettings().budget,
    ) -> None:
        """Replace all model groups. Requests that were routed, and those that wait, go on with their group's successor.

        Args:
            models: the rows of ``model_list``, in order.
            default_server: the server for models without a row and for requests without a model; None for none.
            routing: the strategies, fallbacks and aliases.
            retry_share: the most retries, as a share of a group's requests.
        """
        self.changes += 1
        self._retry_share = retry_share
        servers = [] if default_server is None else [default_server]
        for state in self.servers.configure([*servers, *(entry.server for entry in models)]):
            self.forget_cache(state)
        self._routing = routing
        grouped: dict[str, list[ModelEntry]] = {}
        for entry in models:
            grouped.setdefault(entry.model_name, []).append(entry)
        # entries that stay go on counting
        counted, self._limits = self._limits, {}
        for entry in models:
            if entry.rpm is not None or entry.tpm is not None:
                limits = counted.get(_identity(entry)) or self._limits_of(entry)
                limits.rpm, limits.tpm = entry.rpm, entry.tpm
                self._limits[_identity(entry)] = limits
        previous = self._groups
        self._groups = {
            name: self._group(name, map(self._destination_of, entries), previous.get(name), entries[0].strategy)
            for name, entries in grouped.items()
        }
        # the most specific first
        self._patterns = sorted(
            ((group.pattern, group) for group in self._groups.values() if group.pattern is not None),
            key=lambda each: specificity(each[0].text),
            reverse=True,
        )
        for name in dict.fromkeys((*routing.fallbacks, *routing.context_window_fallbacks)):
            matched = None if name in self._groups else self._matched(name)
            if matched is not None:
                self._groups[name] = self._of_pattern(name, matched, grouped[matched.name], previous.get(name))
        self._named = {name: group for name, group in self._groups.items() if group.pattern is None}
        self._targets = {
            alias: name
            for alias, name in routing.model_group_alias.items()
            if alias not in self._named and (name in self._named or self._matched(name) is not None)
        }
        self._aliases = {alias: self._named.get(name) or self._matched(name) for alias, name in self._targets.items()}
        former, self.default = self.default, None
        if default_server is not None:
            self.default = self._only(self._destination(default_server), fallbacks=routing.default_fallbacks)
            if former is not None:
                self.default.succeed(former)
        # by the server and its own name of the model; of several entries, the dearest
        self._served: dict[tuple[bytes, str], ModelEntry] = {}
        #: the entries with wildcards in the server's name, by server
        self._served_patterns: dict[bytes, list[ModelEntry]] = {}
        for entry in models:
            if is_pattern(entry.upstream_model):
                self._served_patterns.setdefault(entry.server.url, []).append(entry)
                continue
            key = (entry.server.url, entry.upstream_model)
            known = self._served.get(key)
            self._served[key] = entry if known is None else max(known, entry, key=_price)
        #: the groups of the default server's own names for configured models
        self._direct = {
            name: self._only(self._destination(default_server, name, entry), entry.model_name)
            for (url, name), entry in self._served.items()
            if default_server is not None and url == default_server.url
        }
        self._alone: dict[tuple[Server, ModelEntry | None], ModelGroup] = {}
        self._priced = {entry.server.url for entry in models if any(_price(entry))}
        # no name stands in for those that a pattern matches
        self._first = next(iter(self._named.values()), None)
        self._unnamed = self.default
        if self._unnamed is None and models:
            self._unnamed = self._only(self._destination(models[0].server))

    @property
    def names(self) -> tuple[str, ...]:
        """The configured model names, in order and without duplicates; some may have wildcards."""
        return tuple(name for name, group in self._groups.items() if not group.of_pattern)

    def group_named(self, name: str) -> ModelGroup | None:
        """Return the group of a configured model name, or of a single model that a pattern matches; None if none is."""
        return self._groups.get(name)

    @property
    def aliases(self) -> tuple[str, ...]:
        """The further names of models (``model_group_alias``)."""
        return tuple(self._targets)

    @property
    def pattern_groups(self) -> tuple[ModelGroup, ...]:
        """The groups whose names have wildcards, the most specific first."""
        return tuple(group for _, group in self._patterns)

    @property
    def groups(self) -> tuple[ModelGroup, ...]:
        """The groups of the configured model names, and that of the default server."""
        named = (group for group in self._groups.values() if not group.of_pattern)
        return (*named, *(() if self.default is None else (self.default,)))

    @property
    def all_groups(self) -> tuple[ModelGroup, ...]:
        """The same, and those of single models that a pattern matches."""
        return (*self._groups.values(), *(() if self.default is None else (self.default,)))

    def alias(self, model: str) -> str | None:
        """Return the name of the model that `model` is another name of (``model_group_alias``), or None."""
        return self._targets.get(model)

    def has(self, group: ModelGroup) -> bool:
        """Return whether a group of an entry is in use."""
        return self._groups.get(group.name) is group

    def find(self, model: str) -> ModelGroup:
        """Return the group that serves a model: of entries with its name, else of the most specific pattern.

        Raises:
            ModelNotFound: no entry has the name or matches it, and there is no default server.
        """
        group = self._named.get(model) or self._aliases.get(model)
        if group is not None:
            return group
        direct = self._direct.get(model)
        if direct is not None:
            # no caller avoids an entry's price and limits by the server's own name
            return direct
        group = self._matched(model)
        if group is not None:
            return group
        if self.default is None:
            raise ModelNotFound(
                f"No server is configured for the model {model[:CLIP]!r}. Send a model_name of the gateway's "
                "model_list; GET /v1/models lists those that the key may use.",
                param="model",
            )
        return self.default

    def matches(self, model: str, group_name: str) -> bool:
        """Return whether the group of a name serves a model: that of a pattern; or with an empty name, the default."""
        try:
            return self.find(model).name == group_name
        except ModelNotFound:
            return False

    def first(self) -> ModelGroup | None:
        """Return the group of the first entry, which serves requests that name no model; None if it does not."""
        return self._first if self.default is None else None

    def undetermined(self) -> ModelGroup:
        """Return the group for requests without a model: the default server, else the server of the first entry.

        Raises:
            ModelNotFound: no server is configured.
        """
        if self._unnamed is None:
            raise ModelNotFound("No vLLM server is configured. The operator sets HOSTED_VLLM_API_BASE or model_list.")
        return self._unnamed

    def only(self, server: Server, entry: ModelEntry | None = None) -> ModelGroup:
        """Return a group of one server, for requests that must go there.

        Args:
            server: the server.
            entry: the entry whose price and limits count; None if there is none.
        """
        key = (server, entry)
        group = self._alone.get(key)
        if group is None:
            destination = self._destination(server, None, entry)
            group = self._alone[key] = self._only(destination, "" if entry is None else entry.model_name)
        return group

    def serving(self, server: Server, name: str) -> ModelEntry | None:
        """Return the entry whose model a server serves under its own name `name`; None if there is none."""
        entry = self._served.get((server.url, name))
        if entry is None:
            for each in self._served_patterns.get(server.url, ()):
                found = callers_name(each.model_name, each.upstream_model, name)
                if found is not None and (group := self._matched(found)) is not None and group.name == each.model_name:
                    return each
        return entry

    def public_name(self, server: Server, name: str) -> str | None:
        """Return the name by which callers ask for the model that a server calls `name`; None if no entry tells."""
        entry = self.serving(server, name)
        return None if entry is None else callers_name(entry.model_name, entry.upstream_model, name)

    def prices_differ(self, server: Server) -> bool:
        """Return whether the price of a request to a server depends on which of its models serves it."""
        return server.url in self._priced

    def _limits_of(self, entry: ModelEntry) -> EntryLimits:
        make = self._make_limits
        return EntryLimits(entry.rpm, entry.tpm) if make is None else make(_name_of(entry), entry.rpm, entry.tpm)

    def _matched(self, model: str) -> ModelGroup | None:
        """Return the group of the most specific pattern that a name matches."""
        for pattern, group in self._patterns:
            if pattern.match(model) is not None:
                return group
        return None

    def _of_pattern(
        self, name: str, matched: ModelGroup, entries: Sequence[ModelEntry], previous: ModelGroup | None
    ) -> ModelGroup:
        """Return a group of one model that a pattern matches, for its own fallbacks."""
        assert matched.pattern is not None
        segments = matched.pattern.match(name)
        assert segments is not None
        destinations = [
            self._destination(entry.server, filled(entry.upstream_model, segments, name), entry) for entry in entries
        ]
        group = self._group(name, destinations, previous, entries[0].strategy)
        group.of_pattern = True
        return group

    def _destination(
        self, server: Server, upstream_model: str | None = None, entry: ModelEntry | None = None
    ) -> Destination:
        """Return a destination with what is known of its server, and the limits of its entry."""
        limits = None if entry is None else self._limits.get(_identity(entry))
        return Destination(server, self.servers.state_of(server), upstream_model, entry, limits)

    def _destination_of(self, entry: ModelEntry) -> Destination:
        upstream_model = None if entry.upstream_model == entry.model_name else entry.upstream_model
        return self._destination(entry.server, upstream_model, entry)

    def _group(
        self, name: str, destinations: Iterable[Destination], previous: ModelGroup | None, strategy: str | None
    ) -> ModelGroup:
        routing = self._routing
        strategy = strategy or routing.routing_strategy
        # what a policy learned is kept
        policy = previous.policy if previous is not None and previous.strategy == strategy else None
        group = ModelGroup(
            name,
            destinations,
            strategy,
            policy or make_policy(strategy, self._random, self._make_table),
            routing.fallbacks.get(name, tuple(each for each in routing.default_fallbacks if each != name)),
            routing.context_window_fallbacks.get(name, ()),
            self._retry_share,
        )
        if is_pattern(name):
            group.pattern = NamePattern(name)
        if previous is not None:
            group.succeed(previous)
        return group

    @staticmethod
    def _only(destination: Destination, name: str = "", fallbacks: tuple[str, ...] = ()) -> ModelGroup:
        return ModelGroup(name, (destination,), _LONE_STRATEGY, _LONE, fallbacks)

    def forget_cache(self, state: ServerState) -> None:
        """Note that a server's prefix cache is empty: it left, restarted, or was told to reset it."""
        for group in self._groups.values():
            for destination in group.destinations:
                if destination.state is state:
                    group.policy.forgot(destination.key)


# a group of one never asks its policy
_LONE_STRATEGY = "simple-shuffle"
_LONE = make_policy(_LONE_STRATEGY, lambda: 0.0)
