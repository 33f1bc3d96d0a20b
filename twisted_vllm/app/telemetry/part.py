"""A part of the telemetry, and what it may observe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver

from twisted_vllm.app.accounting import AccountingService
from twisted_vllm.app.reload import Reloader
from twisted_vllm.app.traffic import Traffic
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.config.settings import Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.net.certificates import Listeners
from twisted_vllm.http.server.site import GatewaySite
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.delivery.metrics import Deliveries
from twisted_vllm.observability.metrics.registry import Metrics, Snapshot
from twisted_vllm.observability.request_event import RequestEvents
from twisted_vllm.proxy.background_responses import BackgroundResponses
from twisted_vllm.proxy.budget_watch import BudgetWatch
from twisted_vllm.proxy.forwarding import Forwarder
from twisted_vllm.storage.database import Database
from twisted_vllm.upstreams.health_checks import HealthChecks
from twisted_vllm.upstreams.router import Router
from twisted_vllm.upstreams.server_state import Servers
from twisted_vllm.workers.siblings import Siblings


@attrs.frozen(eq=False)
class Surroundings:
    """The components of the gateway that a part may observe.

    Attributes:
        reactor: Twisted's reactor.
        observer: the gateway's log observer.
        redact: removes secrets from text.
        text: removes secrets from text of clients.
        client_of: returns the address of a request's client.
        events: makes an event of each finished request, once something wants them.
        metrics: the gateway's metrics.
        deliveries: the queues in front of other programs, counted in the metrics.
        accounting: meters, limits and stores usage.
        background: follows responses that servers generate in the background.
        index: the keys in memory.
        servers: what is known of each server.
        router: the model groups.
        health: the checks of the servers.
        agent: the connections to servers.
        forwarder: sends requests to servers.
        site: the factory of client connections.
        database: the database.
        listeners: the certificates of the ports that listen with TLS.
        reloader: returns what reloads the settings.
        draining: returns whether the gateway drains.
        budgets: watches how much of their budgets keys and others have used.
        directory: where the names of files in the settings begin.
        siblings: the other processes of the gateway, if there are several.
        snapshot: collects the metrics of all processes at a time in Unix seconds.
        traffic: counts what passes, in steps of time.
    """

    reactor: Any
    observer: ILogObserver
    redact: Callable[[str], str]
    text: ClientText
    client_of: Callable[[RequestContext], str]
    events: RequestEvents
    metrics: Metrics
    deliveries: Deliveries
    accounting: AccountingService
    background: BackgroundResponses
    index: KeyIndex
    servers: Servers
    router: Router
    health: HealthChecks
    agent: UpstreamAgent
    forwarder: Forwarder
    site: GatewaySite
    database: Database
    listeners: Listeners
    reloader: Callable[[], Reloader]
    draining: Callable[[], bool]
    budgets: BudgetWatch
    directory: str
    siblings: Siblings
    snapshot: Callable[[float], Snapshot | Deferred[Snapshot]]
    traffic: Traffic

    def is_own(self, path: bytes) -> bool:
        """Return whether a path is one of the gateway's own routes."""
        return self.site.leaf_for(path) is self.site.resource


class TelemetryPart:
    """A part of the telemetry. A subclass overrides what it needs; a part that is switched off costs nothing."""

    def observers(self) -> Sequence[RequestObserver]:
        """Return what observes requests now; asked anew after each reload."""
        return ()

    def first_observers(self) -> Sequence[RequestObserver]:
        """Return what observes requests before the accounting, the ledger and the log do; likewise."""
        return ()

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Open what other settings need, in any thread; return what puts them into effect, which cannot fail.

        It is called at the start too, with the settings of the start.

        Raises:
            ConfigError: the settings cannot be used.
        """
        return lambda: None

    def start(self) -> None:
        """Start: the gateway serves from now on."""

    def stop(self) -> Deferred[None] | None:
        """Stop, after the last request; return a Deferred that fires once all queued items are delivered or dropped."""
        return None
