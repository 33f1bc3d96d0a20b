"""Tells what is in flight in this process, and ends what somebody wants to end.

Nothing is done for it per request. Who asks has the connections looked through, in steps; all who ask within
`LOOK_SECONDS` share one look, whatever they ask for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from time import thread_time
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall

from twisted_vllm.auth.records import ANONYMOUS, Principal
from twisted_vllm.config.settings import Server
from twisted_vllm.context import RequestContext
from twisted_vllm.errors import RequestCut
from twisted_vllm.http.net.bounded_turns import Cooperate
from twisted_vllm.http.server.connection import DownstreamConnection
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.live_requests import (
    Cut,
    LiveQuery,
    LiveReport,
    LiveRequest,
    WasCut,
    Whose,
    most_keys,
    most_of,
)
from twisted_vllm.observability.logging.redaction import MASK
from twisted_vllm.observability.request_states import MOST_NAMES, STREAMING, State
from twisted_vllm.proxy.in_flight import in_batches, state_of
from twisted_vllm.proxy.pending_step import PendingStep

#: seconds for which a look serves those who ask, and for how many times as long as it took: so it is at most a
#: hundredth of what the process does
LOOK_SECONDS, LOOK_TIMES = 2.0, 100.0

#: the least digits of a key's hash that are taken for some
_LEAST_DIGITS = 4

_CUT = "This request was ended while it was in flight, by an administrator or by somebody whose request it is."


class _Group:
    """Requests in flight that have the same caller, state, model and server: what questions are about."""

    __slots__ = ("count", "model", "principal", "seen", "server", "state", "wanted")

    def __init__(self, principal: Principal, state: State, model: str, server: Server | None) -> None:
        self.principal = principal
        self.state = state
        self.model = model
        self.server = server
        self.count = 0
        # about the question that is answered now: whether the asker may see them, and asks for them
        self.seen = self.wanted = False


#: that of requests that have ended
_GONE = _Group(ANONYMOUS, STREAMING, "", None)


class _Look:
    """What was in flight when it was looked at. The lists have the same order, and none holds objects of its own.

    Attributes:
        at: when, in Unix seconds.
        ends: until when it serves others.
        turns: the places of requests in the queues.
        groups: what requests have in common; the keys hold ids of objects that the groups keep.
        requests: the requests.
        group_of: the group of each.
        started: when each began.
        tokens: the tokens of each so far, -1 if it tells none; None if nobody asked for them.
        by_age: the places of the requests in these lists, the oldest request first.
        by_tokens: likewise, the most tokens first.
        waiting: who asked before it was complete.
    """

    def __init__(self, at: float, turns: Mapping[Deferred[Any], int], *, with_tokens: bool) -> None:
        self.at = at
        self.ends = at
        self.turns = turns
        self.groups: dict[tuple[int, State, str, int], _Group] = {}
        self.requests: list[GatewayRequest] = []
        self.group_of: list[_Group] = []
        self.started: list[float] = []
        self.tokens: list[int] | None = [] if with_tokens else None
        self.by_age: list[int] = []
        self.by_tokens: list[int] = []
        self.waiting: list[Deferred[_Look]] = []

    def sort(self) -> None:
        """Find the orders, when it is complete."""
        everything = range(len(self.requests))
        self.by_age = sorted(everything, key=self.started.__getitem__)
        if self.tokens is not None:
            self.by_tokens = sorted(everything, key=self.tokens.__getitem__, reverse=True)

    def ordered(self, query: LiveQuery) -> Iterable[int]:
        """Return the places of the requests in a query's order; those whose tokens are not known come last."""
        if query.sort == "age":
            return reversed(self.by_age) if query.ascending else self.by_age
        if not query.ascending or self.tokens is None:
            return self.by_tokens
        known = len(self.tokens) - self.tokens.count(-1)
        return chain(reversed(self.by_tokens[:known]), self.by_tokens[known:])


class LiveRequests:
    """Looks through the requests in flight of this process when somebody asks."""

    def __init__(
        self,
        connections: Callable[[], Iterable[DownstreamConnection]],
        turns: Callable[[], Mapping[Deferred[Any], int]],
        text: ClientText,
        client_of: Callable[[RequestContext], str],
        cooperate: Cooperate,
        clock: Any,
        seconds: Callable[[], float] = thread_time,
    ) -> None:
        """Set up; nothing is looked at before somebody asks.

        Args:
            connections: returns the client connections.
            turns: returns the places of requests in the queues, as `Dispatcher.turns`.
            text: removes secrets from text of clients.
            client_of: returns the address that a request comes from.
            cooperate: runs an iterator in steps.
            clock: the reactor.
            seconds: measures what a look takes, in CPU seconds of the thread.
        """
        self._connections = connections
        self._turns = turns
        self._text = text
        self._client_of = client_of
        self._cooperate = cooperate
        self._clock = clock
        self._seconds = seconds
        self._latest: _Look | None = None
        self._running: _Look | None = None
        # until when somebody may ask for tokens again
        self._tokens_until = 0.0
        self._forgetting: IDelayedCall | None = None

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        """Return what is in flight in this process of what is asked for."""
        return self._look(with_tokens=query.sort == "tokens").addCallback(self._answer, query)

    def cut(self, cut: Cut) -> WasCut:
        """End the requests with an id; return what they were. Two clients may have chosen the same id."""
        found: list[LiveRequest] = []
        turns = self._turns()
        now = self._clock.seconds()
        wanted = cut.request_id.encode("utf-8", "replace")
        for requests in in_batches(self._connections()):
            for request in requests:
                context = request.context
                principal = context.principal
                if principal is None or not self._is_called(context, wanted, cut.request_id):
                    continue
                if cut.whose is not None and (principal.may_administer or not cut.whose.includes(principal)):
                    continue
                found.append(self._told(request, state_of(request, turns), turns, now, cut.whose))
                request.end_early(RequestCut(_CUT), "cut")
        return WasCut(found)

    def stop(self) -> None:
        """Forget what was looked at. Idempotent."""
        self._latest = None
        forgetting, self._forgetting = self._forgetting, None
        if forgetting is not None and forgetting.active():
            forgetting.cancel()

    def _is_called(self, context: RequestContext, wanted: bytes, text: str) -> bool:
        # what is told of a client's own id is without secrets
        return context.request_id == wanted or (MASK in text and self._text.request_id(context) == text)

    # looking

    def _look(self, *, with_tokens: bool) -> Deferred[_Look]:
        """Return a look that is young enough, or a new one."""
        now = self._clock.seconds()
        latest, running = self._latest, self._running
        if with_tokens:
            self._tokens_until = now + 2 * LOOK_SECONDS
        if latest is not None and latest.at <= now < latest.ends and _serves(latest, with_tokens):
            return succeed(latest)
        waiting: Deferred[_Look] = Deferred()
        if running is None or not _serves(running, with_tokens):
            # one look serves those who sort by tokens as well, while there are any
            running = self._running = _Look(now, self._turns(), with_tokens=now < self._tokens_until)
            self._cooperate(self._steps(running)).whenDone().addCallbacks(
                self._looked, self._failed, callbackArgs=(running,), errbackArgs=(running,)
            )
        running.waiting.append(waiting)
        return waiting

    def _steps(self, look: _Look) -> Iterator[None]:
        groups, tokens, turns = look.groups, look.tokens, look.turns
        add_request, add_group, add_started = look.requests.append, look.group_of.append, look.started.append
        spent, began = 0.0, self._seconds()
        for requests in in_batches(self._connections()):
            for request in requests:
                context = request.context
                principal = context.principal
                if principal is None:
                    continue
                state, model, server = state_of(request, turns), context.model, context.server
                key = (id(principal), state, model, id(server))
                group = groups.get(key)
                if group is None:
                    shown = self._text.model(context) if model else model
                    group = groups[key] = _Group(principal, state, shown, server)
                group.count += 1
                add_request(request)
                add_group(group)
                add_started(context.started)
                if tokens is not None:
                    generated = None if context.meter is None else context.meter.generated
                    tokens.append(-1 if generated is None else generated)
            spent += self._seconds() - began
            yield
            began = self._seconds()
        look.sort()
        spent += self._seconds() - began
        look.ends = look.at + max(LOOK_SECONDS, LOOK_TIMES * spent)

    def _looked(self, _: object, look: _Look) -> None:
        if self._running is look:
            self._running = None
            self._latest = look
            if self._forgetting is not None and self._forgetting.active():
                self._forgetting.cancel()
            # it keeps contexts of requests that have ended
            left = max(look.ends - self._clock.seconds(), 0.0)
            self._forgetting = self._clock.callLater(left, self._forget, look)
        for waiting in look.waiting:
            waiting.callback(look)

    def _failed(self, failure: Any, look: _Look) -> None:
        if self._running is look:
            self._running = None
        for waiting in look.waiting:
            waiting.errback(failure)

    def _forget(self, look: _Look) -> None:
        if self._latest is look:
            self._latest = None

    # telling

    def _answer(self, look: _Look, query: LiveQuery) -> LiveReport:
        whose = query.whose
        total = matching = 0
        states, models, servers = Counter[str](), Counter[str](), Counter[str]()
        keys = Counter[tuple[str, str]]()
        for group in look.groups.values():
            group.seen = whose is None or whose.includes(group.principal)
            group.wanted = group.seen and _matches(group, query)
        requests = self._first(look, query)
        for group in look.groups.values():
            count, principal = group.count, group.principal
            if not group.seen or not count:
                continue
            total += count
            if not group.wanted:
                continue
            matching += count
            states[group.state] += count
            models[group.model] += count
            keys[principal.name, principal.hash_prefix] += count
            if whose is None and group.server is not None:
                servers[group.server.name] += count
        return LiveReport(
            look.at,
            total,
            matching,
            requests,
            most_of(states, MOST_NAMES),
            most_of(models, MOST_NAMES),
            most_of(servers, MOST_NAMES),
            most_keys(keys, MOST_NAMES),
        )

    def _first(self, look: _Look, query: LiveQuery) -> list[LiveRequest]:
        """Return the first of the requests that are asked for; those that have ended since are left out."""
        found: list[LiveRequest] = []
        now = self._clock.seconds()
        requests, group_of = look.requests, look.group_of
        for place in look.ordered(query):
            group = group_of[place]
            if not group.wanted:
                continue
            if len(found) >= query.limit:
                break
            request = requests[place]
            if request.context.ended:
                # it is counted no more
                group.count -= 1
                group_of[place] = _GONE
                continue
            found.append(self._told(request, group.state, look.turns, now, query.whose))
        return found

    def _told(
        self,
        request: GatewayRequest,
        state: State,
        turns: Mapping[Deferred[Any], int],
        now: float,
        whose: Whose | None,
    ) -> LiveRequest:
        context, text = request.context, self._text
        principal, meter, work, server = context.principal, context.meter, request.work, context.server
        assert principal is not None
        stream: bool | None = None
        if meter is not None and (meter.is_stream or meter.usage_injected):
            stream = True
        elif context.first_byte is not None and meter is not None and meter.status:
            stream = False
        return LiveRequest(
            text.request_id(context),
            context.started,
            state,
            principal.name,
            principal.hash_prefix,
            principal.user_id or "",
            principal.team_id or "",
            text.model(context),
            "" if server is None or whose is not None else server.name,
            text.route(context),
            max(now - context.started, 0.0),
            None if context.first_byte is None else max(context.first_byte - context.started, 0.0),
            turns.get(work.awaited) if isinstance(work, PendingStep) else None,
            None if meter is None else meter.generated,
            None if meter is None else meter.prompt_tokens,
            request.body_received,
            request.sentLength,
            stream,
            self._client_of(context) if whose is None or whose.is_own(principal) else "",
            len(context.attempts) + (context.sent and not isinstance(work, PendingStep)),
        )


def _serves(look: _Look, with_tokens: bool) -> bool:
    return look.tokens is not None or not with_tokens


def _matches(group: _Group, query: LiveQuery) -> bool:
    """Return whether a question asks for the requests of a group."""
    principal = group.principal
    if query.state and group.state != query.state:
        return False
    if query.model and group.model != query.model:
        return False
    if query.key and not _is_named(principal, query.key):
        return False
    if query.team and principal.team_id != query.team:
        return False
    if query.user and principal.user_id != query.user:
        return False
    return not query.server or (group.server is not None and group.server.name == query.server)


def _is_named(principal: Principal, key: str) -> bool:
    if principal.name == key:
        return True
    return len(key) >= _LEAST_DIGITS and principal.hash_prefix.startswith(key.lower())
