"""Ends running requests whose key is not valid any more: `passthrough.revoke_running`.

Nothing is stored per request. After a change of keys, users or teams, each request in flight is authenticated again by
its own head. Between changes only requests whose key has expired are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator, LoopingCall, SchedulerStopped
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import MissingApiKey
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.admission import Admission

#: seconds between two checks; together with the poll for changes of other processes it stays below a second
INTERVAL = 0.2

#: keys that are authenticated in one turn of the reactor
AT_ONCE = 200


class Revoker:
    """Checks the running requests from `start` to `stop`."""

    _log = Logger()

    def __init__(
        self,
        admission: Admission,
        running: Callable[[], Iterable[GatewayRequest]],
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make the revoker.

        Args:
            admission: authenticates requests, and counts changes of keys, users and teams.
            running: returns the requests in flight.
            clock: the reactor.
            now: the time in Unix seconds.
        """
        self._admission = admission
        self._running = running
        self._now = now
        self._seen = admission.changes
        self._turns = Cooperator(
            terminationPredicateFactory=lambda: lambda: True, scheduler=lambda step: clock.callLater(0, step)
        )
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock

    def start(self) -> None:
        """Begin to check."""
        self._looping.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Stop checking."""
        if self._looping.running:
            self._looping.stop()
        self._turns.stop()

    def _look(self) -> Deferred[Any]:
        looked: Deferred[Any] = self._turns.coiterate(self._end_what_may_not_go_on())
        return looked.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        # the next check must come all the same
        if not failure.check(SchedulerStopped):
            self._log.failure("The running requests could not be looked through", failure)

    def _end_what_may_not_go_on(self) -> Iterator[None]:
        changes, now = self._admission.changes, self._now()
        changed = changes != self._seen
        self._seen = changes
        # the requests of one key share its principal: one lookup serves them all; the principal is kept so that its id
        # stays its own
        verdicts: dict[int, tuple[Principal, Principal | MissingApiKey]] = {}
        for request in self._running():
            context = request.context
            principal = context.principal
            if context.ended or context.authorization is None or principal is None or principal.kind != "key":
                # it has ended meanwhile, or is an administrator's, which is completed
                continue
            if not changed and now < principal.expires:
                continue
            is_new = id(principal) not in verdicts
            if is_new:
                verdicts[id(principal)] = principal, self._identify(request, now)
            verdict = verdicts[id(principal)][1]
            if isinstance(verdict, MissingApiKey):
                request.revoke(verdict)
            elif verdict.kind == "key":
                # it may say another time now
                context.principal = verdict
            if is_new and len(verdicts) % AT_ONCE == 0:
                yield

    def _identify(self, request: GatewayRequest, now: float) -> Principal | MissingApiKey:
        try:
            return self._admission.identify(request.head.first, now, request.method)
        except MissingApiKey as error:
            return error
