"""Ends running requests of keys that are no longer valid: `passthrough.revoke_running`.

Nothing is stored per request. After a change of keys, users or teams, each request in flight is authenticated again by
its own head; between changes, only requests of expired keys are.
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
from twisted_vllm.errors import GatewayError, IssuerUnavailable, StoreUnavailable, UnverifiedToken
from twisted_vllm.http.server.connection import DownstreamConnection
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.in_flight import in_batches

#: seconds between checks; with the poll for changes of other processes, a revocation takes less than a second
INTERVAL = 0.2

#: connections whose keys are authenticated in one turn of the reactor
BATCH_SIZE = 200


class Revoker:
    """Checks the running requests from `start` to `stop`."""

    _log = Logger()

    def __init__(
        self,
        admission: Admission,
        connections: Callable[[], Iterable[DownstreamConnection]],
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Make the revoker.

        Args:
            admission: authenticates requests, and counts changes of keys, users and teams.
            connections: returns the client connections.
            clock: the reactor.
            now: the time in Unix seconds.
        """
        self._admission = admission
        self._connections = connections
        self._now = now
        self._changes_seen = admission.changes
        self._cooperator = Cooperator(
            terminationPredicateFactory=lambda: lambda: True, scheduler=lambda step: clock.callLater(0, step)
        )
        self._looping = LoopingCall(self._check)
        self._looping.clock = clock

    def reconfigure(self, enabled: bool) -> None:
        """Check from now on, or no longer."""
        if enabled and not self._looping.running:
            self._changes_seen = self._admission.changes
            self._looping.start(INTERVAL, now=False)
        elif not enabled and self._looping.running:
            self._looping.stop()

    def stop(self) -> None:
        """Stop checking."""
        if self._looping.running:
            self._looping.stop()
        self._cooperator.stop()

    def _check(self) -> Deferred[Any]:
        done: Deferred[Any] = self._cooperator.coiterate(self._end_revoked())
        return done.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        # the next check must still run
        if not failure.check(SchedulerStopped):
            self._log.failure("The running requests could not be looked through", failure)

    def _end_revoked(self) -> Iterator[None]:
        changes, now = self._admission.changes, self._now()
        changed = changes != self._changes_seen
        self._changes_seen = changes
        # the requests of one key share its principal, so one lookup serves them all; keeping the principal keeps its
        # id() unique
        results: dict[int, tuple[Principal, Principal | GatewayError | None]] = {}
        for requests in in_batches(self._connections(), BATCH_SIZE):
            known = len(results)
            for request in requests:
                context = request.context
                principal = context.principal
                if context.ended or principal is None or principal.kind != "key":
                    # ended meanwhile, or an administrator's, which may complete
                    continue
                if not changed and now < principal.expires:
                    continue
                if id(principal) not in results:
                    results[id(principal)] = principal, self._identify(request, now)
                result = results[id(principal)][1]
                if isinstance(result, GatewayError):
                    request.end_early(result, "revoked")
                elif result is not None and result.kind == "key":
                    # its expiry may have changed
                    context.principal = result
            if len(results) > known:
                yield

    def _identify(self, request: GatewayRequest, now: float) -> Principal | GatewayError | None:
        """Return whose request it is or why it is refused; None if that must be found out first."""
        try:
            return self._admission.identify(request.head.first, now, request.method)
        except (UnverifiedToken, IssuerUnavailable, StoreUnavailable):
            # its token was valid when the request began
            return None
        except GatewayError as error:
            return error
