"""Reload: reads the settings again, and puts them into effect in one turn of the reactor, or not at all."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.app.service_manager import NO_MANAGER, ServiceManager
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.reload import (
    FAILED,
    INVALID,
    SUCCEEDED,
    Reloaded,
    ReloadEnd,
    ReloadPlan,
    ReloadState,
    plan_reload,
)
from twisted_vllm.config.settings import Settings
from twisted_vllm.errors import Draining, GatewayError

#: Seconds after which the thread that reads gives way to the reactor; Python's own 5 ms would delay every chunk.
SWITCH_SECONDS = 0.0005

#: who asks for a reload, beside signals
BY_API = "API"

#: paths that a line of the log names; the answer to an administrator names all
MAX_NAMED = 20


@attrs.frozen
class Planned:
    """Settings that were read and prepared, and are not in effect.

    Attributes:
        read: what was read.
        plan: what changes.
        files: the paths of settings whose files differ.
        apply: puts them into effect.
    """

    read: Settings
    plan: ReloadPlan
    files: tuple[str, ...]
    apply: Callable[[], None]


class Prepare(Protocol):
    """Opens and reads what other settings need, in another thread."""

    def __call__(self, settings: Settings, /) -> tuple[tuple[str, ...], Callable[[], None]]:
        """Return the paths of settings whose files differ, and what puts the settings into effect.

        Raises:
            ConfigError: something cannot be opened or read.
        """


class Reloader:
    """Reloads the settings, one reload after the other.

    Attributes:
        settings: those in effect.
        results: how many reloads `SUCCEEDED`, were `INVALID` and changed nothing, or `FAILED` otherwise.
        succeeded_at: when the settings in effect were read, in Unix seconds; at first, the start.
        last_failed: whether the last reload did not succeed.
        restart_needed: settings that differ since the last reload and need a restart.
        coordinate: reloads in all processes of the gateway; None if there is only this one.
        ask_state: finds the state of reloads in all processes; None if there is only this one.
    """

    _log = Logger()

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        prepare: Prepare,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        manager: ServiceManager = NO_MANAGER,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Set up.

        Args:
            settings: those in effect.
            read: reads the settings, in another thread; it may raise `ConfigError`.
            prepare: prepares settings, in another thread.
            in_thread: runs a function in another thread.
            manager: is told when a reload begins and ends.
            now: Unix seconds.
        """
        self.settings = settings
        self._read = read
        self._prepare = prepare
        self._in_thread = in_thread
        self._manager = manager
        self._waiting: list[Deferred[Reloaded]] = []
        self._running = self._stopped = False
        self._ordinary_switching = sys.getswitchinterval()
        self._now = now
        self.results = {SUCCEEDED: 0, INVALID: 0, FAILED: 0}
        self.succeeded_at = now()
        self.last_failed = False
        self.restart_needed: tuple[str, ...] = ()
        self.coordinate: Callable[[], Deferred[Reloaded]] | None = None
        self.ask_state: Callable[[], Deferred[ReloadState]] | None = None
        self._askers: list[str] = []
        self._state = ReloadState(read_at=self.succeeded_at)

    def state(self) -> Deferred[ReloadState]:
        """Return what reloads did since the start, whoever asked for them and in whichever process."""
        return succeed(self._state) if self.ask_state is None else self.ask_state()

    def reload(self, by: str = BY_API) -> Deferred[Reloaded]:
        """Read the settings and put them into effect. Those who ask while a reload runs get the next one together.

        Args:
            by: who asks.

        Raises:
            ConfigError: the settings cannot be used. Nothing was changed.
            Draining: the gateway is shutting down. Nothing was changed.
        """
        if self.coordinate is not None:
            return self.coordinate()
        self._askers.append(by)
        done: Deferred[Reloaded] = Deferred()
        self._waiting.append(done)
        if not self._running:
            self._run()
        return done

    def reload_for(self, name: str) -> None:
        """Reload because of a signal; the log says what became of it."""
        self._log.info("Received {name}: reading the configuration again", name=name)
        if not self._running or not self._waiting:
            self.reload(name).addErrback(_is_told)
        else:
            self._askers.append(name)

    def stop(self) -> None:
        """Reload no more: the gateway shuts down. Idempotent."""
        self._stopped = True

    @inlineCallbacks
    def _run(self) -> Any:
        self._running = True
        self._manager.reloading()
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            by, self._askers = together_by(self._askers), []
            try:
                result: Reloaded | Failure = yield self._reload()
            except Exception:
                result = Failure()
            self._state = self._state.after(end_of(result, self._now(), by))
            for done in waiting:
                # whoever asked may have gone
                if not done.called:
                    done.callback(result)
        self._running = False
        if not self._stopped:
            self._manager.ready()

    @inlineCallbacks
    def _reload(self) -> Any:
        planned: Planned = yield self.plan()
        return self.put_into_effect(planned)

    @inlineCallbacks
    def plan(self) -> Any:
        """Read and prepare the settings, and change nothing; the Deferred has the `Planned`.

        Raises:
            ConfigError: they cannot be used.
            Draining: the gateway is shutting down.
        """
        self._check_runs()
        try:
            planned: Planned = yield self._in_thread(self._planned)
        except ConfigError as error:
            self._ended(INVALID)
            if self.coordinate is None:
                self._log.error(
                    "The configuration cannot be used; nothing was changed:\n{problems}", problems=str(error)
                )
            raise
        except Exception:
            self._ended(FAILED)
            self._log.failure("The configuration could not be read again; nothing was changed")
            raise
        self._check_runs()
        return planned

    def not_put_into_effect(self) -> None:
        """Note that what was prepared is not used: another process of the gateway could not prepare it."""
        self._ended(FAILED)

    def put_into_effect(self, planned: Planned) -> Reloaded:
        """Put settings into effect, in one turn of the reactor."""
        plan = planned.plan
        try:
            planned.apply()
        except Exception:
            self._ended(FAILED)
            self._log.failure("The new configuration is in effect in part only: restart the gateway")
            raise
        self._ended(SUCCEEDED)
        self.restart_needed = plan.restart_needed
        self.settings = plan.settings
        changed = tuple(dict.fromkeys((*plan.changed, *planned.files)))
        if self.coordinate is None:
            tell_reload(self._log, changed, plan.restart_needed, plan.settings.warnings)
        return Reloaded(changed, plan.restart_needed, plan.settings.warnings)

    def _planned(self) -> Planned:
        """Read, compare and prepare, in another thread."""
        # to parse a file of a thousand models takes a second
        sys.setswitchinterval(min(SWITCH_SECONDS, self._ordinary_switching))
        try:
            read = self._read()
            plan = plan_reload(self.settings, read)
            return Planned(read, plan, *self._prepare(plan.settings))
        finally:
            sys.setswitchinterval(self._ordinary_switching)

    def _ended(self, result: str) -> None:
        self.results[result] += 1
        self.last_failed = result != SUCCEEDED
        if not self.last_failed:
            self.succeeded_at = self._now()

    def _check_runs(self) -> None:
        if self._stopped:
            self._log.warn("The configuration is not read again: the gateway shuts down")
            raise Draining("The gateway is shutting down: its configuration is not read again.", retry_after=1)


def together_by(askers: Sequence[str]) -> str:
    """Return who asked for a reload that several share."""
    return ", ".join(dict.fromkeys(askers))


def end_of(result: Reloaded | Failure, at: float, by: str) -> ReloadEnd:
    """Return how a reload ended.

    Args:
        result: what it did, or why it did nothing.
        at: Unix seconds.
        by: who asked for it.
    """
    if isinstance(result, Reloaded):
        return ReloadEnd(
            at=at,
            by=by,
            result=SUCCEEDED,
            changed=result.changed,
            restart_needed=result.restart_needed,
            warnings=tuple(result.warnings),
        )
    error: Any = result.value
    if isinstance(error, ConfigError):
        problems = tuple(map(str, error.problems))
        return ReloadEnd(at=at, by=by, result=INVALID, problems=problems, warnings=error.warnings)
    told = error.message if isinstance(error, GatewayError) else f"{type(error).__name__}; the log says more."
    return ReloadEnd(at=at, by=by, result=FAILED, problems=(told,))


def tell_reload(
    log: Logger, changed: tuple[str, ...], restart_needed: tuple[str, ...], warnings: Sequence[str]
) -> None:
    """Write to the log what a reload did; the arguments are those of `Reloaded`."""
    for warning in warnings:
        log.warn("{warning}", warning=warning)
    log.info("The configuration was read again; changed: {changed}", changed=_named(changed))
    if restart_needed:
        log.warn("A restart is needed for: {paths}", paths=_named(restart_needed))


def _is_told(failure: Failure) -> None:
    """Handle a failure that the log has already."""


def _named(paths: tuple[str, ...]) -> str:
    more = len(paths) - MAX_NAMED
    return ", ".join(paths[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "") or "nothing"


class HangUp:
    """Handles SIGHUP, in the reactor's thread: the settings are read again.

    It is also what a terminal's programs get when it closes. Then the gateway stops, as for SIGTERM.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        has_terminal: Callable[[], bool],
        set_handler: Callable[[int, Any], Any] = signal.signal,
    ) -> None:
        """Take the signal over at once: it would end the process. What comes before `install` waits for it.

        Args:
            reactor: calls the handlers in its thread.
            has_terminal: returns whether the process has a terminal with which it ends; asked now, and at each signal.
            set_handler: sets the handler of a signal and returns the former one.
        """
        self._reactor = reactor
        self._has_terminal = has_terminal
        self._early = False
        self._on_reload: Callable[[str], None] | None = None
        self._on_stop: Callable[[str], None] | None = None
        former = set_handler(signal.SIGHUP, self._received)
        # nohup has it ignored: the process outlives its terminal
        self._had_terminal = former is not signal.SIG_IGN and has_terminal()

    def install(self, on_reload: Callable[[str], None], on_stop: Callable[[str], None]) -> None:
        """Call one of these with the signal's name for each signal, once the reactor runs."""
        self._on_reload, self._on_stop = on_reload, on_stop
        if self._early:
            self._received(signal.SIGHUP, None)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self._on_reload is None or self._on_stop is None:
            self._early = True
            return
        ends = self._had_terminal and not self._has_terminal()
        self._reactor.callFromThread(self._on_stop if ends else self._on_reload, signal.Signals(number).name)


def has_terminal() -> bool:
    """Return whether the process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
