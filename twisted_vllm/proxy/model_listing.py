"""The models that a caller may use, over all servers, by the names that it calls them.

Each is described as the server that has it does: with vLLM's own ``max_model_len``, ``root``, ``parent`` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.auth.records import Principal
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.name_patterns import callers_name, filled, is_pattern
from twisted_vllm.config.settings import ModelEntry, PriceList, Server
from twisted_vllm.errors import ModelNotFound
from twisted_vllm.http.net.bounded_turns import Cooperate, Job, Jobs
from twisted_vllm.proxy.serving import LONGEST_NAME
from twisted_vllm.upstreams.listed_entries import ListedEntry, listed_entries
from twisted_vllm.upstreams.router import CLIP, Destination, ModelGroup, Router
from twisted_vllm.upstreams.served_models import ANTHROPIC_VERSION, Card, ServedModels

#: the servers that one list asks at most: of a service with more, the others have the same models
MAX_ASKED = 200
#: the most models of a list, and how many are written in one step
MAX_LISTED, STEP = 10_000, 32
#: the most entries that are told of
MAX_ENTRIES = 2_000
#: how many lists are kept, and the bytes of one
MOST_KEPT, LARGEST_KEPT = 32, 262_144


class Permissions(Protocol):
    """Decides which models a caller may use: `Admission`."""

    def may_use_model(self, principal: Principal, name: str) -> bool:
        """Return whether a principal may use a model, by a name whose alias of the key is resolved."""

    def check_may_list(self, principal: Principal) -> None:
        """Check that a principal may call ``/v1/models``."""


class ListOptions(msgspec.Struct, frozen=True, gc=False):
    """What a request says about the list, in LiteLLM's parameters; others are ignored.

    Attributes:
        wildcards: whether names with wildcards are listed too (``return_wildcard_routes``).
        healthy: whether models without a server that works are left out (``healthy_only``).
        metadata: whether the fallbacks of each model are told (``include_metadata``).
        for_anthropic: whether the answer is for Anthropic's SDK, which reads other fields.
    """

    wildcards: bool = False
    healthy: bool = False
    metadata: bool = False
    for_anthropic: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str], headers: Mapping[bytes, bytes]) -> ListOptions:
        """Return the options of a request.

        Args:
            query: the parameters.
            headers: the first value of each header, by lower-case name.
        """

        def asks(name: str) -> bool:
            return query.get(name, "").lower() in ("true", "1", "yes", "on", "t", "y")

        return cls(
            asks("return_wildcard_routes"), asks("healthy_only"), asks("include_metadata"), ANTHROPIC_VERSION in headers
        )


class ModelListing:
    """Lists models, and describes one."""

    def __init__(
        self,
        router: Router,
        served: ServedModels,
        permissions: Permissions,
        *,
        entries: Callable[[], Sequence[ModelEntry]],
        default_prices: Callable[[], PriceList],
        created: int,
        cooperate: Cooperate,
    ) -> None:
        """Set up.

        Args:
            router: knows the model groups.
            served: asks servers for their models.
            permissions: decides which models a caller may use.
            entries: returns the entries of the model list.
            default_prices: returns the prices of entries that name none.
            created: when models began of which no server tells, in Unix seconds.
            cooperate: runs the steps of a long list.
        """
        self._jobs = Jobs(cooperate)
        self._router = router
        self._served = served
        self._permissions = permissions
        self._entries = entries
        self._default_prices = default_prices
        self._created = created
        self._answers: BoundedCache[tuple[object, ...], bytes] = BoundedCache(MOST_KEPT, LARGEST_KEPT)

    def check_allowed(self, principal: Principal) -> None:
        """Check that a principal may list models.

        Raises:
            RouteNotAllowed: it may not.
        """
        self._permissions.check_may_list(principal)

    def forwards(self, principal: Principal) -> bool:
        """Return whether the list is the default server's own answer: there is no other, and all of it is for all."""
        return not (self._router.names or principal.restricts_models or principal.aliases) and (
            self._router.default is not None
        )

    def listed(self, principal: Principal, query: Mapping[str, str], headers: Mapping[bytes, bytes]) -> Deferred[bytes]:
        """Return the JSON of the models that a principal may use.

        Args:
            principal: the caller.
            query: the parameters of the request.
            headers: the first value of each header, by lower-case name.
        """
        options = ListOptions.of(query, headers)
        asked = self._served.refresh(self._all_servers())
        return asked.addCallback(lambda _: self._list_now(principal, options))

    def retrieve(
        self, principal: Principal, name: str, query: Mapping[str, str], headers: Mapping[bytes, bytes]
    ) -> Deferred[bytes]:
        """Return the JSON of one model.

        Args:
            principal: the caller.
            name: the model's name.
            query: the parameters of the request.
            headers: the first value of each header, by lower-case name.

        Returns:
            A Deferred of it, which fails with `ModelNotFound` if there is no such model, or the principal may not use
            it.
        """
        options = ListOptions.of(query, headers)
        asked = principal.aliases.get(name, name)
        servers: list[Server] = []
        if len(name) <= LONGEST_NAME and self._permissions.may_use_model(principal, asked):
            with suppress(ModelNotFound):
                servers = self._servers_of(self._router.find(asked))

        def tell(_: object) -> bytes:
            card = self.card(principal, name, options) if servers else None
            if card is None:
                raise ModelNotFound(
                    f"The model {name[:CLIP]!r} does not exist, or this key may not use it. GET /v1/models lists the "
                    "models that it may use.",
                    param="model",
                )
            return msgspec.json.encode(_for_anthropic(card) if options.for_anthropic else card)

        return self._served.refresh(servers).addCallback(tell)

    def entries(self, principal: Principal, *, expand: bool, named: str = "") -> Deferred[list[ListedEntry]]:
        """Return the entries of the model list that a principal may use, and models of the default server without one.

        Args:
            principal: the caller.
            expand: whether an entry with wildcards is also there once for each model that it matches.
            named: the only model whose entries are returned, also if no server lists it; empty for all.
        """

        def tell(_: object) -> list[ListedEntry]:
            may_use = self._permissions.may_use_model
            all_entries = listed_entries(
                self._entries(), self._router, self._served, self._default_prices(), expand=expand
            )
            allowed = (each for each in all_entries if may_use(principal, each.entry.model_name))
            found = list(islice(allowed, MAX_ENTRIES))
            if not named:
                return found
            own = [each for each in found if each.entry.model_name == named]
            if own or not may_use(principal, named) or len(named) > LONGEST_NAME:
                return own
            return self._of_pattern(named)

        return self._served.refresh(self._all_servers()).addCallback(tell)

    def _of_pattern(self, name: str) -> list[ListedEntry]:
        """Return the entries with wildcards that serve a model."""
        with suppress(ModelNotFound):
            pattern = self._router.find(name).pattern
            if pattern is not None:
                rows = listed_entries(self._entries(), self._router, self._served, self._default_prices(), expand=False)
                return [
                    ListedEntry(attrs.evolve(each.entry, model_name=name), each.card)
                    for each in rows
                    if each.entry.model_name == pattern.text
                ]
        return []

    def card(
        self,
        principal: Principal,
        name: str,
        options: ListOptions,
        parents: dict[tuple[Server, str], str] | None = None,
    ) -> Card | None:
        """Return what is known now of a model that a caller names; None if it cannot be used.

        Args:
            principal: the caller.
            name: the model's name.
            options: what to tell.
            parents: the names of base models that are known already, to which it adds.
        """
        asked = principal.aliases.get(name, name)
        if not self._permissions.may_use_model(principal, asked):
            return None
        try:
            group = self._router.find(asked)
        except ModelNotFound:
            return None
        found = self._found(group, asked)
        if found is None or (options.healthy and not _is_well(group)):
            return None
        card = {**found, "id": name}
        parent = card.get("parent")
        if isinstance(parent, str):
            server = self._described_by(group).server
            known = {} if parents is None else parents
            if (server, parent) not in known:
                known[server, parent] = self._router.public_name(server, parent) or parent
            card["parent"] = known[server, parent]
        if options.metadata:
            card["metadata"] = {"fallbacks": list(group.fallbacks)}
        return card

    def names(self, principal: Principal) -> Iterator[str]:
        """Yield the names that a caller may know of: of the model list, of servers, and its own.

        Some may not be for it, or may have no server: `card` decides.
        """
        router = self._router
        for name in router.names:
            if not is_pattern(name):
                yield name
        yield from router.aliases
        for group in router.pattern_groups:
            yield from self._matching(group, principal)
        if router.default is not None:
            server = router.default.destinations[0].server
            for name in self._own_names(server):
                # of a model with an entry, the entry's name counts
                if router.serving(server, name) is None:
                    yield name
        yield from principal.aliases

    def _list_now(self, principal: Principal, options: ListOptions) -> bytes | Deferred[bytes]:
        """Return the list; equal lists are written once, until something changes, and long ones in steps."""
        restricts = (
            *_patterns_of(principal),
            tuple(principal.aliases.items()),
            tuple(principal.team_aliases.items()),
        )
        key = (self._router.changes, self._served.changes, options, principal.is_administrator, restricts)
        # which servers work changes often
        answer = None if options.healthy else self._answers.get(key)
        if answer is not None:
            return answer
        steps = self._write(principal, options)
        written: Deferred[bytes] = Deferred()

        def rest() -> Iterator[None]:
            try:
                found = yield from steps
            except Exception:
                written.errback(Failure())
                return
            self._answers.keep(key, found, len(found))
            if not written.called:
                written.callback(found)

        work = rest()
        # most lists are short
        if next(work, self) is not self:
            job = self._jobs.run(principal.key_id or principal.kind, work)
            written = self._stopping(job, written)
        return written

    @staticmethod
    def _stopping(job: Job, written: Deferred[bytes]) -> Deferred[bytes]:
        """Return a Deferred of what a job writes, which stops with it."""
        waiting: Deferred[bytes] = Deferred(lambda _: job.stop())
        written.chainDeferred(waiting)
        return waiting

    def _write(self, principal: Principal, options: ListOptions) -> Generator[None, None, bytes]:
        pieces: list[bytes] = []
        ends: list[str] = []
        parents: dict[tuple[Server, str], str] = {}
        seen: set[str] = set()

        def add(card: Card) -> None:
            if options.for_anthropic:
                card = _for_anthropic(card)
                ends.append(card["id"])
            pieces.append(msgspec.json.encode(card))

        for number, name in enumerate(islice(self.names(principal), MAX_LISTED), 1):
            if number % STEP == 0:
                yield
            if name in seen:
                continue
            seen.add(name)
            card = self.card(principal, name, options, parents)
            if card is not None:
                add(card)
        if options.wildcards:
            for name in filter(is_pattern, self._router.names):
                if self._permissions.may_use_model(principal, name):
                    add(self._unknown(name, name))
        more = b""
        if options.for_anthropic:
            first, last = (ends[0], ends[-1]) if ends else (None, None)
            more = b"," + msgspec.json.encode({"has_more": False, "first_id": first, "last_id": last})[1:-1]
        return b'{"object":"list","data":[%b]%b}' % (b",".join(pieces), more)

    def _found(self, group: ModelGroup, asked: str) -> Card | None:
        """Return what servers say of a model; of an entry with one name, that it is configured if they say nothing."""
        name = self._router.alias(asked) or asked
        if group.dearest.entry is None:
            return self._listed(group.destinations, lambda _: name)
        segments = None if group.pattern is None else group.pattern.match(name)
        if segments is None:
            own = group.name if group.pattern is None else name
            found = self._listed(group.destinations, lambda each: each.upstream_model or own, answering=False)
            return found or self._unknown(name, group.destinations[0].upstream_model or own)

        def name_at(each: Destination) -> str:
            return name if each.upstream_model is None else filled(each.upstream_model, segments, name)

        found = self._listed(group.destinations, name_at)
        if found is not None:
            return found
        # a server's name without a wildcard is configured, whoever asks for it
        first = group.destinations[0].upstream_model
        return None if first is None or is_pattern(first) else self._unknown(name, first)

    def _listed(
        self, destinations: Iterable[Destination], name_at: Callable[[Destination], str], *, answering: bool = True
    ) -> Card | None:
        """Return what the first server that has a model says of it.

        Args:
            destinations: where to look.
            name_at: returns a destination's name of the model.
            answering: whether only servers count that answered the last time.
        """
        for each in destinations:
            if not answering or self._served.answers(each.server):
                card = self._served.cards(each.server).get(name_at(each))
                if card is not None:
                    return card
        return None

    def _unknown(self, name: str, root: str) -> Card:
        """Return the description of a model that is configured, and of which no server has told."""
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "vllm",
            "root": root,
            "parent": None,
            "max_model_len": None,
            "permission": [],
        }

    def _matching(self, group: ModelGroup, principal: Principal) -> Iterator[str]:
        """Yield the names that a pattern matches: those of its servers' models, and those that a caller may use."""
        for each in group.destinations:
            for served in self._own_names(each.server):
                name = callers_name(group.name, each.upstream_model or group.name, served)
                if name is not None:
                    yield name
        for name in (name for level in _patterns_of(principal) for name in level):
            if group.pattern is not None and not is_pattern(name) and group.pattern.match(name) is not None:
                yield name

    def _own_names(self, server: Server) -> Iterable[str]:
        return self._served.cards(server) if self._served.answers(server) else ()

    def _described_by(self, group: ModelGroup) -> Destination:
        """Return the destination that describes a group: one that works, if there is one."""
        return next((each for each in group.destinations if _works(each)), group.destinations[0])

    def _servers_of(self, group: ModelGroup) -> list[Server]:
        if group.pattern is None:
            return [self._described_by(group).server]
        return list(dict.fromkeys(each.server for each in group.destinations))[:MAX_ASKED]

    def _all_servers(self) -> list[Server]:
        found: dict[Server, None] = {}
        for group in self._router.groups:
            found.update(dict.fromkeys(self._servers_of(group)))
        return list(found)[:MAX_ASKED]


def _patterns_of(principal: Principal) -> tuple[tuple[str, ...], ...]:
    """Return the patterns of models at each level that restricts a caller."""
    return principal.models, principal.user_models, principal.team_models, principal.organization_models


def _for_anthropic(card: Card) -> Card:
    """Return a description with the fields that Anthropic's SDK reads, beside vLLM's own."""
    created, length = card.get("created"), card.get("max_model_len")
    began = datetime.fromtimestamp(created if isinstance(created, int) and 0 <= created < 1 << 37 else 0, UTC)
    return {
        **card,
        "type": "model",
        "display_name": card["id"],
        "created_at": began.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": length,
        "max_tokens": length,
    }


def _works(destination: Destination) -> bool:
    return destination.state.breaker.closed and not destination.state.rests


def _is_well(group: ModelGroup) -> bool:
    return any(map(_works, group.destinations))
