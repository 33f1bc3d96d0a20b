"""The root service: builds the gateway from its settings, starts it in order, and drains it at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import IService, Service
from twisted.internet.defer import gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from twisted_vllm.app.drain import StopSignals
from twisted_vllm.app.heap import forget_generated_sources, map_large_blocks, spare_from_collection
from twisted_vllm.app.reload import HangUp
from twisted_vllm.app.service_manager import NO_MANAGER, ServiceManager
from twisted_vllm.app.start_error import StartError, explain_address
from twisted_vllm.app.wiring import Wiring
from twisted_vllm.config.settings import Settings
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.http.net.open_files import open_file_limit
from twisted_vllm.observability.logging.setup import finish, give_to_twistd, install
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.registry import ChangeFollower

if TYPE_CHECKING:
    from twisted_vllm.app.processes.member import Member
    from twisted_vllm.app.processes.membership import Membership


class GatewayService(Service):
    """The gateway.

    Attributes:
        ports: the listening ports, while it runs.
        wiring: its parts.
        site: the factory of client connections.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        observer: ILogObserver,
        companions: Sequence[IService] = (),
        signals: StopSignals | None = None,
        hang_up: HangUp | None = None,
        read_again: Callable[[], Settings] | None = None,
        directory: str = "",
        manager: ServiceManager = NO_MANAGER,
        member: Member | None = None,
    ) -> None:
        """Build the gateway; nothing is opened yet.

        Args:
            reactor: Twisted's reactor.
            settings: the settings.
            observer: the log observer.
            companions: services that start before the gateway and stop after it.
            signals: the stop signals: the first drains, the second aborts.
            hang_up: the signal to reload.
            read_again: reads the settings again, as `Wiring` says.
            directory: where the names of files in them begin.
            manager: is told when the gateway serves, reloads and stops.
            member: makes this one of several processes; None if it is the whole gateway.

        Raises:
            ValueError: a listen string is not an endpoint.
            InvalidRequest: a rule of ``tenant_routes`` cannot be read.
        """
        # all modules are loaded
        forget_generated_sources()
        self.ports: list[IListeningPort] = []
        self._reactor = reactor
        self._settings = settings
        self._observer = observer
        self._companions = companions
        self._signals = signals
        self._hang_up = hang_up
        wiring = self.wiring = Wiring(reactor, settings, observer, read_again, directory, manager, member)
        self._membership: Membership | None = None
        if member is not None:
            # Imported here: a gateway of one process does without.
            from twisted_vllm.app.processes.membership import Membership

            self._membership = Membership(member, wiring, reactor, self.ports, self._listen)
        self._manager = manager
        self.site = wiring.site
        self._drain = wiring.drain
        self._follower = ChangeFollower(wiring.registry, reactor)

    # start

    def setServiceParent(self, parent: object) -> None:
        """Join an application, and set its log before twistd creates its own."""
        give_to_twistd(self._observer, parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Start to log and to listen, before twistd drops the privileges for low ports.

        Connections wait in the kernel until the reactor runs, which is after `startService`.

        Raises:
            StartError: an address cannot be listened on.
        """
        super().privilegedStartService()
        install(self._observer)
        for companion in self._companions:
            companion.privilegedStartService()
        if self._membership is None:
            self._listen()

    def startService(self) -> None:
        """Open the database, load the keys and start to serve. This may block: nothing else runs yet.

        Raises:
            StartError: the database cannot be used.
        """
        super().startService()
        map_large_blocks()
        for companion in self._companions:
            companion.startService()
        if not self.ports and self._membership is None:
            self._listen()
        try:
            self.wiring.database.open()
            self._finish_restore()
            self.wiring.reports.open()
            self.wiring.registry.load(self.wiring.store.load_now())
            self.wiring.accounting.open(self.wiring.store.spend_now)
            if self.wiring.siblings.housekeeps:
                self.wiring.background.recover()
        except (StoreError, StoreUnavailable, StartError) as error:
            self._refuse_to_start(str(error))
        spare_from_collection()
        if self._signals is not None:
            self._signals.install(self._drain.signalled)
        if self._hang_up is not None:
            self._hang_up.install(self.wiring.reloader.reload_for, self._drain.signalled)
        self.wiring.deadlines.start()
        self.wiring.health.start()
        self.wiring.models.start()
        if self.wiring.siblings.serves:
            self.wiring.kv_caches.configure(self.wiring.models.current.servers)
        if self.wiring.siblings.housekeeps:
            self.wiring.load_scraper.start()
        if self.wiring.sharing is not None:
            self.wiring.sharing.start()
        self.wiring.each_minute.start()
        self.wiring.accounting.start()
        if self.wiring.siblings.housekeeps:
            self.wiring.usage_export.start()
            self.wiring.audit_retention.start()
            self.wiring.background.start()
            self.wiring.budgets.start()
        self.wiring.telemetry.start()
        self.wiring.overview.start()
        if self.wiring.shared_readiness is not None:
            self.wiring.shared_readiness.start()
        self._follower.start()
        self.wiring.revoker.reconfigure(self._settings.revoke_running)
        for warning in self._settings.warnings:
            self._log.warn("{warning}", warning=warning)
        cap = self.site.limits.max_connections
        if cap != self._settings.limits.max_connections:
            self._log.info(
                "At most {cap} client connections at once, and {share} of one address that is no trusted proxy: the "
                "process may open {files} files",
                cap=cap,
                share=self.site.connection_limit.most_of_one,
                files=open_file_limit(),
            )
        if self._membership is None:
            # else the supervisor says so
            for port in self.ports:
                self._log.info("Listening on {address}", address=_address(port))
        self._log.info(
            "Serving {servers} with {keys} virtual keys, {mode}",
            servers=", ".join(state.name for state in self.wiring.servers),
            keys=len(self.wiring.index),
            mode="open to anybody: no master key is set" if self._settings.master_key is None else "master key set",
        )

        self._manager.ready()
        if self._membership is not None:
            self._membership.start()

    def _finish_restore(self) -> None:
        """Place the spool of a restore into PostgreSQL that was killed; SQLite's is done when the file is opened."""
        spool = self._settings.spool_directory
        if self._settings.ledger.enabled and os.path.exists(spool / "restoring.json"):
            # Imported here: few starts come after a restore that was killed.
            from twisted_vllm.storage.backup.postgresql_restore import finish_at_start

            self.wiring.database.run_now(lambda connection: finish_at_start(spool, connection))

    def _listen(self) -> None:
        failures: list[Failure] = []
        starting = True

        def failed(failure: Failure) -> None:
            if starting:
                failures.append(failure)
            else:
                self._log.failure("One of the addresses cannot be listened on", failure)

        for endpoint in self.wiring.endpoints:
            endpoint.listen(self.site).addCallbacks(self.ports.append, failed)
        starting = False
        if failures:
            self._refuse_to_start(explain_address(failures[0].value))

    def _refuse_to_start(self, reason: str) -> NoReturn:
        self._log.critical("The gateway cannot start: {reason}", reason=reason)
        ports, self.ports = self.ports, []
        for port in ports:
            port.stopListening()
        raise StartError(reason) from None

    # stop

    @inlineCallbacks
    def stopService(self) -> Any:
        """Drain, stop everything else, and fire."""
        super().stopService()
        began = self._reactor.seconds()
        self.wiring.reloader.stop()
        self._manager.stopping()
        yield self._drain.run(self.ports)
        self.wiring.shared_background.stop()
        self.wiring.background.stop()
        self.wiring.health.stop()
        self.wiring.models.stop()
        self.wiring.kv_caches.stop()
        self.wiring.load_scraper.stop()
        if self.wiring.sharing is not None:
            self.wiring.sharing.stop()
        self.wiring.agent.close()
        self.wiring.disconnects.close()
        self.wiring.deadlines.stop()
        self.wiring.audit_retention.stop()
        self._follower.stop()
        self.wiring.revoker.stop()
        self.wiring.live.stop()
        self.wiring.inquiry.stop()
        self.wiring.each_minute.stop()
        self.wiring.overview.stop()
        self.wiring.budgets.stop()
        if self.wiring.log_levels is not None:
            self.wiring.log_levels.stop()
        yield gatherResults([maybeDeferred(companion.stopService) for companion in self._companions])
        yield self.wiring.usage_export.stop()
        yield self.wiring.telemetry.stop()
        # At the same time: each may wait a moment for a database that does not answer.
        yield gatherResults(
            [self.wiring.accounting.stop(), self.wiring.database.stop(), self.wiring.reports.stop()],
        )
        self._log.info("Drained in {seconds:.1f} s", seconds=self._reactor.seconds() - began)
        if self.wiring.shared_readiness is not None:
            self.wiring.shared_readiness.stop()
        if self.wiring.shared_metrics is not None:
            self.wiring.shared_metrics.tell_last()
        if self._membership is not None:
            self._membership.stop()
        if self._signals is not None:
            self._signals.restore()
        finish(self._observer)


def _address(port: IListeningPort) -> str:
    """Return a port's address for the log."""
    address: Any = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)
        return os.fsdecode(name) if name else str(address)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
