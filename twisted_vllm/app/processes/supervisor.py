"""The root service of a gateway with several processes: it opens the sockets, and starts and replaces the processes."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from twisted_vllm.app.drain import StopSignals
from twisted_vllm.app.heap import spare_from_collection
from twisted_vllm.app.processes.handed_over import HandedOver
from twisted_vllm.app.processes.limit_server import limit_server
from twisted_vllm.app.processes.metrics_keeper import MetricsKeeper
from twisted_vllm.app.processes.supervised_budgets import SupervisedBudgets
from twisted_vllm.app.processes.supervisor_metrics import SupervisorMetrics
from twisted_vllm.app.reload import HangUp
from twisted_vllm.app.service_manager import NO_MANAGER, ServiceManager
from twisted_vllm.app.settings_source import SettingsSource
from twisted_vllm.app.shared.reload import Prepared, ReloadCoordinator, refused
from twisted_vllm.app.shared.settings_digest import Fingerprint, fingerprint_of
from twisted_vllm.app.start_error import StartError, explain_address
from twisted_vllm.config.listen import with_backlog
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.reload import plan_reload
from twisted_vllm.config.settings import Settings
from twisted_vllm.http.net.epoll_hub import data_path_reactor
from twisted_vllm.http.net.inherited import OpenSockets, open_sockets
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.setup import (
    GatewayLog,
    LogTargetError,
    TwistdLog,
    finish,
    give_to_twistd,
    install,
)
from twisted_vllm.observability.logging.sinks import RotatedFile
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.upstreams.shared.keeper import LimitKeeper
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.link import FAILED, Failed
from twisted_vllm.workers.orders import Defaults, Log, Order, Sockets
from twisted_vllm.workers.permits import ConnectionPermits
from twisted_vllm.workers.processes import Command, Processes
from twisted_vllm.workers.siblings import HOUSEKEEPER

#: the module that a process runs
WORKER_MODULE = "twisted_vllm.app.processes.worker"

#: where the descriptors of a process begin: the socket to the supervisor, then those of clients
_CONTROL = 3


class SupervisorService(Service):
    """Several processes that are one gateway.

    Attributes:
        hub: talks to the processes.
        processes: those that run.
        connection_permits: shares out client connections.
        limits: counts for the processes.
        budgets: keeps its budgets as the database has them.
        metrics: collects the metrics of all processes.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        workers: int,
        source: SettingsSource,
        observer: ILogObserver,
        twistd: TwistdLog,
        reactor_name: str,
        signals: StopSignals,
        hang_up: HangUp,
        manager: ServiceManager = NO_MANAGER,
        owner: tuple[int, int] | None = None,
    ) -> None:
        """Set up; nothing is opened yet.

        Args:
            reactor: Twisted's reactor.
            settings: the settings.
            workers: how many workers to start.
            source: where each process reads its settings.
            observer: the log observer.
            twistd: what twistd's command line says of the log.
            reactor_name: the reactor of the processes.
            signals: the stop signals: the first drains, the second cuts.
            hang_up: the signal to reload.
            manager: is told when the gateway serves and stops.
            owner: the user and the group that twistd will change to; None if it stays what it is.
        """
        self._reactor = reactor
        self._settings = settings
        self._workers = workers
        self._source = source
        self._observer = observer
        self._twistd = twistd
        self._reactor_name = reactor_name
        self._signals = signals
        self._hang_up = hang_up
        self._manager = manager
        self._owner = owner
        self._opened: list[OpenSockets] = []
        self._stopping = self._replacing = False
        self._hash_seed = str(int.from_bytes(os.urandom(4), "big"))
        coalescer = WriteCoalescer()
        sockets = data_path_reactor(reactor, coalescer, Shortages())
        self.hub = Hub(reactor, coalescer)
        self._limit_keeper = LimitKeeper(self.hub, reactor)
        limiter = LocalLimiter(lambda *crossed: self.limits.soft_budget_crossed(*crossed))
        self.budgets = SupervisedBudgets(self.hub, limiter)
        self.limits = limit_server(self.hub, limiter, self.budgets.reconciliation)
        # a collection of a hundred thousand budgets would delay all workers
        self.limits.on_loaded = spare_from_collection
        self.processes = Processes(reactor, sockets, self.hub, workers, self._command)
        self.processes.on_serving = self._serving
        self.processes.on_give_up = self._give_up
        self.metrics = MetricsKeeper(
            self.hub, SupervisorMetrics(self.hub, self.processes, self.limits, workers), reactor
        )
        self.processes.drain_seconds = settings.drain_delay + settings.drain_timeout
        self.connection_permits = ConnectionPermits(self.hub)
        self.hub.on(FAILED, Failed, self._failed)
        #: why the last process that could not start could not
        self._reason = ""
        self._coordinator = ReloadCoordinator(self.hub, self)
        self._handed_over = HandedOver(settings)

    def setServiceParent(self, parent: object) -> None:
        """Join an application, and set its log before twistd creates its own."""
        give_to_twistd(self._observer, parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Start to log, and open the sockets, before twistd drops the privileges for low ports.

        Raises:
            StartError: an address cannot be listened on.
        """
        super().privilegedStartService()
        install(self._observer)
        if self._owner is not None and isinstance(self._observer, LineObserver):
            sink = self._observer.writer.sink
            if isinstance(sink, RotatedFile):
                # every process opens it, once it is of the other user; whoever may not do this may not change to it
                with suppress(PermissionError):
                    sink.give_to(*self._owner)
        for text in self._settings.listen:
            try:
                self._opened.append(open_sockets(self._reactor, with_backlog(text), self._workers))
            except (CannotListenError, OSError) as error:
                self._refuse_to_start(explain_address(error))

    def startService(self) -> None:
        """Start the processes, once the reactor runs.

        Raises:
            StartError: their user cannot read what they need.
        """
        super().startService()
        if self._owner is not None:
            self._look_as_owner()
        self._signals.install(self._signalled)
        signal.signal(signal.SIGUSR1, self._reopen)
        signal.signal(signal.SIGUSR2, self._replace)
        self._hang_up.install(self._reload, self._signalled)
        self._reactor.callWhenRunning(self.processes.start)
        self.metrics.start()

    @inlineCallbacks
    def stopService(self) -> Any:
        """Have the workers drain, then the housekeeper write what is left, and fire."""
        super().stopService()
        self._stopping = True
        self._manager.stopping()
        closing = self._reactor.callLater(self._settings.drain_delay, self._close_sockets)
        yield self.processes.stop_all(lambda slot: slot != HOUSEKEEPER)
        yield self.processes.stop_all()
        if closing.active():
            closing.cancel()
            self._close_sockets()
        self.metrics.stop()
        self._limit_keeper.stop()
        self._log.info("All processes have ended")
        self._signals.restore()
        finish(self._observer)

    def _look_as_owner(self) -> None:
        """Look whether the processes can start, now that the privileges are dropped: one error, not one of each."""
        try:
            self._source.read(os.environ)
        except ConfigError as error:
            user = f"the user of --uid ({os.geteuid()}) must be able to read every file: each process reads them"
            self._refuse_to_start(f"{'; '.join(map(str, error.problems))} ({user})")
        if not os.access(sys.executable, os.X_OK, effective_ids=True):
            self._refuse_to_start(f"the user of --uid ({os.geteuid()}) may not run {sys.executable}")

    def _signalled(self, name: str) -> None:
        if self._stopping:
            self._log.warn("Received {name} again: what still runs is cut", name=name)
            self.processes.cut()
        else:
            self._stopping = True
            self._log.info("Received {name}: draining; once more cuts what still runs", name=name)
            self._reactor.stop()

    def _reopen(self, number: int, frame: FrameType | None) -> None:
        """Have every process open its log file again."""
        if isinstance(self._observer, LineObserver):
            self._observer.writer.reopen()
        self._reactor.callFromThread(self._reopen_all)

    def _reopen_all(self) -> None:
        # a line, so that the file is there at once
        self._log.info("Received SIGUSR1: every process opens its log file again")
        self.processes.reopen_logs()

    def _replace(self, number: int, frame: FrameType | None) -> None:
        self._reactor.callFromThread(self._replace_all)

    def _replace_all(self) -> None:
        if self._stopping or self._replacing:
            return
        self._replacing = True
        self._log.info("Received SIGUSR2: the processes are replaced one after the other")
        replacing: Deferred[Any] = self.processes.replace_all()
        replacing.addCallbacks(self._replaced, self._not_replaced)

    def _replaced(self, _: object) -> None:
        self._replacing = False
        self._log.info("All processes were replaced")

    def _not_replaced(self, failure: Failure) -> None:
        self._replacing = False
        self._log.error(
            "A process could not be replaced, and those of before stay: {reason}", reason=str(failure.value)
        )

    def _reload(self, name: str) -> None:
        self._log.info("Received {name}: reading the configuration again in all processes", name=name)
        self._coordinator.reload(name)

    def prepare(self) -> Deferred[tuple[Prepared, Callable[[], None]]]:
        """Read the settings for the supervisor's own part, in a thread."""
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._read_again)

    def _read_again(self) -> tuple[Prepared, Callable[[], None]]:
        try:
            read = self._source.read(dict(os.environ))
            plan = plan_reload(self._settings, read)
            log = plan.settings.log
            prepared = self._observer.prepare(log) if isinstance(self._observer, GatewayLog) else _nothing
        except (ConfigError, OSError, LogTargetError):
            return refused(Failure()), _nothing

        def apply() -> None:
            prepared()
            self._settings = plan.settings
            self.processes.drain_seconds = plan.settings.drain_delay + plan.settings.drain_timeout
            former, self._handed_over = self._handed_over, HandedOver(plan.settings)
            former.close()

        return Prepared(fingerprint_of(read), warnings=tuple(read.warnings)), apply

    def in_effect(self) -> Fingerprint:
        """Return the digests of the settings in effect."""
        return fingerprint_of(self._settings)

    def reload_begun(self) -> None:
        """Tell the service manager."""
        self._manager.reloading()

    def reload_ended(self) -> None:
        """Tell the service manager."""
        if not self._stopping:
            self._manager.ready()

    def end(self, number: int, reason: str) -> None:
        """End a process that goes on with the settings of before."""
        self.processes.kill(number, reason)

    def _serving(self) -> None:
        for opened in self._opened:
            self._log.info("Listening on {address}", address=opened.name)
        self._log.info("Serving with {workers} workers", workers=self._workers)
        self._manager.ready()

    def _failed(self, message: Failed, sender: int) -> None:
        """A process cannot start."""
        process = self.processes.running.get(sender)
        if process is not None:
            name, self._reason = process.name, message.reason
            self._log.error("The {process} cannot start: {reason}", process=name, reason=message.reason)
        # it waits for this
        self.hub.close(sender)

    def _give_up(self, reason: str) -> None:
        self._log.critical("The gateway gives up: {reason}", reason=reason)
        if sys.__stderr__ is not None:
            # sys.stderr is redirected to the log by now
            cannot = f"vllm-passthrough cannot start: {self._reason.rstrip()}"
            print(cannot if self._reason else f"vllm-passthrough gives up: {reason}", file=sys.__stderr__)
        # twistd has no way to end with a status; this is called when all else is done
        atexit.register(_end_with_failure)
        if not self._stopping:
            self._stopping = True
            self._reactor.stop()

    def _close_sockets(self) -> None:
        opened, self._opened = self._opened, []
        for each in opened:
            each.close()

    def _refuse_to_start(self, reason: str) -> NoReturn:
        self._log.critical("The gateway cannot start: {reason}", reason=reason)
        self._close_sockets()
        raise StartError(reason) from None

    def _command(self, number: int, slot: int, control: int) -> Command:
        """Return how to start a process."""
        descriptors = {0: 0, 1: 1, 2: 2, _CONTROL: control}

        def passed(ours: int) -> int:
            theirs = max(descriptors) + 1
            descriptors[theirs] = ours
            return theirs

        # the housekeeper accepts from nobody
        opened: Sequence[OpenSockets] = () if slot == HOUSEKEEPER else self._opened
        sockets = tuple(
            Sockets(each.text, int(each.family), tuple(passed(ours) for ours in each.descriptors)) for each in opened
        )
        chosen = self._source.quickstart
        defaults = None
        if chosen is not None:
            simulator = chosen.simulator
            defaults = Defaults(
                chosen.database_url,
                None if simulator is None else passed(simulator.fileno()),
            )
        twistd = self._twistd
        order = Order(
            number=number,
            slot=slot,
            workers=self._workers,
            control=_CONTROL,
            sockets=sockets,
            file=self._source.file,
            listen=self._source.listen,
            asked_workers=self._source.workers,
            directory=self._source.directory,
            reactor=self._reactor_name,
            log=Log(twistd.is_daemon, twistd.logfile, twistd.syslog_prefix),
            quickstart=defaults,
            settings=None if self._handed_over.descriptor is None else passed(self._handed_over.descriptor),
        )
        arguments = [sys.executable, "-m", WORKER_MODULE, msgspec.json.encode(order).decode()]
        environ = dict(os.environ if chosen is None else chosen.environ)
        if environ.get("PYTHONHASHSEED", "random") in ("", "random"):
            # workers tell each other hashes of prompts
            environ["PYTHONHASHSEED"] = self._hash_seed
        return Command(arguments, environ, descriptors)


def _nothing() -> None:
    """Do nothing."""


def _end_with_failure() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(1)
