"""Ends running requests whose key would not be let in any more: `passthrough.revoke_running`.

Nothing is kept for a request. Once something has changed, those in work are looked through, and each is identified
again by its own head, as it would be if it came now; between changes only those are whose keys' time is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_vllm.access.records import Principal
from twisted_vllm.errors import MissingApiKey
from twisted_vllm.gateway.admission import Admission
from twisted_vllm.gateway.resource import Forwarding
from twisted_vllm.wire.request import GatewayRequest

#: seconds between two looks; with those between two looks at what other processes changed it is less than a second
INTERVAL = 0.2


class Revoker:
    """Looks after the running requests, from `start` to `stop`."""

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
            admission: says whom a request acts as, and how often keys, users and teams were changed.
            running: returns the requests that are in work.
            clock: says when to look.
            now: the time in Unix seconds.
        """
        self._admission = admission
        self._running = running
        self._now = now
        self._seen = admission.changes
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock

    def start(self) -> None:
        """Begin to look."""
        self._looping.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._looping.running:
            self._looping.stop()

    def _look(self) -> None:
        try:
            self._end_what_may_not_go_on()
        except Exception:
            # the next turn must come all the same
            self._log.failure("The running requests could not be looked through")

    def _end_what_may_not_go_on(self) -> None:
        changes, now = self._admission.changes, self._now()
        changed = changes != self._seen
        self._seen = changes
        # those of one key share its principal: each is asked about once
        verdicts: dict[int, Principal | MissingApiKey] = {}
        kept: list[Principal] = []
        for request in self._running():
            principal = request.principal
            if not isinstance(request.note, Forwarding) or principal.kind != "key":
                # an administrator's act is seen through
                continue
            if not changed and now < principal.expires:
                continue
            verdict = verdicts.get(id(principal))
            if verdict is None:
                kept.append(principal)
                verdict = verdicts[id(principal)] = self._identify(request, now)
            if isinstance(verdict, MissingApiKey):
                request.revoke(verdict)
            elif verdict.kind == "key":
                # it may say another time now
                request.principal = verdict

    def _identify(self, request: GatewayRequest, now: float) -> Principal | MissingApiKey:
        try:
            return self._admission.identify(request.head, now, request.method)
        except MissingApiKey as error:
            return error
