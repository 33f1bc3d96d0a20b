"""What a process of several has in place of the parts that know the servers alone."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.config.settings import DiscoverySettings
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.upstreams.discovered import Answer, ServiceName
from twisted_vllm.upstreams.discovery import Discovery, LookUp
from twisted_vllm.upstreams.dispatcher import Dispatcher
from twisted_vllm.upstreams.health_checks import HealthChecks
from twisted_vllm.upstreams.policies import Policy
from twisted_vllm.upstreams.response_places import ResponsePlaces
from twisted_vllm.upstreams.router import MakeLimits, Router
from twisted_vllm.upstreams.shared.breaker import SharedBreaker
from twisted_vllm.upstreams.shared.dispatcher import SharingDispatcher
from twisted_vllm.upstreams.shared.learned import SharedPlaces, SharedPrefixes
from twisted_vllm.upstreams.shared.servers import SharedServers
from twisted_vllm.workers.siblings import HOUSEKEEPER, Siblings
from twisted_vllm.workers.topics import NoAnswer

#: the topics of questions and messages
LOOK_UP, RESOLVED = "servers.look_up", "servers.resolved"
#: seconds that the housekeeper may take to tell what DNS said
LOOK_UP_SECONDS = 2.0


class Known(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the housekeeper knows of a name: the answer of DNS; None if it knows none."""

    answer: Answer | None


class ServerSharing:
    """Makes the parts, and connects them.

    Attributes:
        dispatcher: places requests; of the housekeeper, which places none, a plain one.
        make_limits: makes the limits of entries.
        places: the servers of stored responses.
        servers: shares what is known of servers.
    """

    make_limits: MakeLimits | None
    dispatcher: Dispatcher
    places: ResponsePlaces

    def __init__(self, siblings: Siblings, deadlines: DeadlineSweeper, clock: Any) -> None:
        """Make them; `use` must follow.

        Args:
            siblings: the other processes.
            deadlines: the deadlines of queued requests.
            clock: the reactor's clock.
        """
        self._siblings = siblings
        self.servers = SharedServers(siblings, clock)
        self._router: Router | None = None
        if siblings.serves:
            sharing = SharingDispatcher(deadlines, siblings, clock)
            self.dispatcher, self.make_limits = sharing, sharing.make_limits
            prefixes = SharedPrefixes(siblings, self._policy_of)
            sharing.on_sent = prefixes.sent
            places = SharedPlaces(siblings)
            self.places = places
            self.servers.on_tick += [sharing.tick, prefixes.tick, places.tick]
        else:
            self.dispatcher, self.make_limits = Dispatcher(deadlines), None
            self.places = ResponsePlaces()

    def make_breaker(self, **options: Any) -> SharedBreaker:
        """Return the breaker of a new server; the arguments are those of `Breaker`."""
        return self.servers.make_breaker(**options)

    def use(self, router: Router, health: HealthChecks) -> None:
        """Share the servers of a router; `health` follows or finds out how they are."""
        self._router = router
        self.servers.use(router.servers)
        self.servers.on_emptied = router.forget_cache
        self.servers.on_awake = lambda state: self.dispatcher.serve()
        if self._siblings.housekeeps:
            self.servers.check_now = health.check_now
            health.on_checked = self.servers.checked
        if isinstance(self.dispatcher, SharingDispatcher):
            self.dispatcher.use(router.servers)

    def look_up(self, own: LookUp) -> LookUp:
        """Return how to resolve names: the housekeeper asks DNS, and the others ask it.

        Args:
            own: asks DNS, which a worker does only if there is no housekeeper that knows.
        """
        if self._siblings.housekeeps:
            return own

        def look_up(name: ServiceName, settings: DiscoverySettings) -> Deferred[Answer]:
            for number, slot in self._siblings.others.items():
                if slot == HOUSEKEEPER:
                    asking: Deferred[Any] = self._siblings.ask_one(number, LOOK_UP, name, Known, LOOK_UP_SECONDS)

                    def told(known: Known) -> Answer | Deferred[Answer]:
                        return own(name, settings) if known.answer is None else known.answer

                    def untold(failure: Failure) -> Deferred[Answer]:
                        failure.trap(NoAnswer)
                        return own(name, settings)

                    return asking.addCallbacks(told, untold)
            return own(name, settings)

        return look_up

    def follow(self, discovery: Discovery) -> None:
        """Tell, or be told, what names resolve to."""
        siblings = self._siblings
        if siblings.housekeeps:
            siblings.answers(LOOK_UP, ServiceName, lambda name, asker: Known(discovery.answer_of(name)))
            discovery.on_changed = lambda name: siblings.share(RESOLVED, name)
        else:
            siblings.on(RESOLVED, ServiceName, lambda name, sender: discovery.refresh_name(name))

    def start(self) -> None:
        """Begin to tell what changes."""
        self.servers.start()

    def stop(self) -> None:
        """Tell nothing any more. Idempotent."""
        self.servers.stop()

    def _policy_of(self, model: str) -> Policy | None:
        group = None if self._router is None else self._router.group_named(model)
        return None if group is None else group.policy
