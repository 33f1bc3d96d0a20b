"""Filters the requests of a sink, before their events are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.config.name_patterns import NamePattern, is_pattern
from twisted_vllm.config.sinks import DATABASE, FAILURES, KEYS, NOBODY, REQUESTS, SUCCESSES, SinkSettings
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.request_event import is_success

#: names whose match is remembered, of models, teams and keys each
MAX_NAMES, MAX_NAME = 1024, 256


class Names:
    """Names and patterns of names; without any, every name is one of them."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Read the patterns."""
        self._names = frozenset(each for each in patterns if not is_pattern(each))
        self._patterns = [NamePattern(each) for each in patterns if is_pattern(each)]
        self._known: BoundedCache[str, bool] = BoundedCache(MAX_NAMES, MAX_NAME)
        self.all = not patterns

    def has(self, name: str) -> bool:
        """Return whether a name is one of them."""
        if self.all or name in self._names:
            return True
        if not self._patterns:
            return False
        found = self._known.get(name)
        if found is None:
            found = any(each.match(name) is not None for each in self._patterns)
            self._known.keep(name, found, len(name))
        return found

    def has_prefix(self, text: str) -> bool:
        """Return whether one of the names is the beginning of a text."""
        return bool(text) and any(len(name) >= 8 and text.startswith(name) for name in self._names)


def make_filter(sink: SinkSettings, is_own: Callable[[bytes], bool]) -> Callable[[RequestContext], bool] | None:
    """Return the filter of a sink for finished requests; None if it gets none.

    Args:
        sink: the sink.
        is_own: whether a path is one of the gateway's own routes.
    """
    events = frozenset(sink.events)
    if not events & {REQUESTS, SUCCESSES, FAILURES}:
        return None
    both = REQUESTS in events or {SUCCESSES, FAILURES} <= events
    wants_success = SUCCESSES in events
    models, teams, keys = Names(sink.models), Names(sink.teams), Names(sink.keys)
    contents_only = sink.type == DATABASE
    gateway_routes, tells_refused, needs_key = sink.gateway_routes, sink.refused != NOBODY, sink.refused == KEYS

    def wants(context: RequestContext) -> bool:
        if contents_only and context.contents is None:
            return False
        if not both and is_success(context.status, context.outcome) is not wants_success:
            return False
        principal = context.principal
        if context.authorization is None:
            is_gateways = is_own(context.head.target.partition(b"?")[0])
            if is_gateways and not gateway_routes:
                return False
        else:
            is_gateways = False
        if not context.sent and not is_gateways and not tells_refused:
            return False
        if not context.sent and needs_key and principal is None:
            return False
        if not models.all and not models.has(context.model):
            return False
        if not teams.all and (principal is None or principal.team_id is None or not teams.has(principal.team_id)):
            return False
        return keys.all or (
            principal is not None and (keys.has(principal.name) or keys.has_prefix(principal.hash_prefix))
        )

    return wants
