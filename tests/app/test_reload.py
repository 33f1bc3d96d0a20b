"""Reload: what happens when, without a file or a thread."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from twisted_vllm.app.reload import HangUp, Reloader
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.reload import Reloaded, ReloadEnd, ReloadState
from twisted_vllm.config.settings import Settings
from twisted_vllm.errors import Draining


class Harness:
    """A reloader whose thread the test runs.

    Attributes:
        wanted: the settings that are read; an error is raised.
        applied: the settings that were put into effect, in order.
        seconds: the time.
    """

    def __init__(self) -> None:
        self.wanted: Settings | Exception = Settings()
        self.applied: list[Settings] = []
        self.breaks: Exception | None = None
        self._works: list[tuple[Callable[[], Any], Deferred[Any]]] = []
        self.seconds = 100.0
        self.reloader = Reloader(Settings(), self._read, self._prepare, self._in_thread, now=lambda: self.seconds)

    def _read(self) -> Settings:
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted

    def _prepare(self, settings: Settings) -> tuple[tuple[str, ...], Callable[[], None]]:
        if self.breaks is not None:
            raise self.breaks
        return ("a file",), lambda: self.applied.append(settings)

    def _in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._works.append((work, done))
        return done

    def run_thread(self) -> None:
        work, done = self._works.pop(0)
        try:
            result = work()
        except Exception:
            done.errback(Failure())
        else:
            done.callback(result)

    @property
    def busy(self) -> int:
        return len(self._works)


@pytest.fixture
def harness() -> Harness:
    return Harness()


def outcome(deferred: Deferred[Any]) -> Any:
    """Return what a Deferred fired with, or the error; None if it has not fired."""
    found: list[Any] = []

    def keep(result: Any) -> Any:
        found.append(result.value if isinstance(result, Failure) else result)
        # for the next look
        return found[0]

    deferred.addBoth(keep)
    return found[0] if found else None


DELAYED = attrs.evolve(Settings(), drain_delay=7.0)


def test_what_was_read_is_in_effect_once_it_was_prepared(harness: Harness) -> None:
    harness.wanted = DELAYED
    done = harness.reloader.reload()
    assert harness.applied == []
    harness.run_thread()
    assert harness.applied == [DELAYED]
    assert harness.reloader.settings == DELAYED
    assert outcome(done) == Reloaded(("passthrough.drain_delay", "a file"))


def test_those_that_ask_while_a_reload_runs_share_the_next_one(harness: Harness) -> None:
    first, second, third = (harness.reloader.reload() for _ in range(3))
    assert harness.busy == 1
    harness.run_thread()
    assert (outcome(first), outcome(second), harness.busy) == (Reloaded(("a file",)), None, 1)
    harness.wanted = DELAYED
    harness.run_thread()
    assert outcome(second) == outcome(third) == Reloaded(("passthrough.drain_delay", "a file"))
    assert (len(harness.applied), harness.busy) == (2, 0)


def test_signals_in_a_burst_need_one_more_reload_each_at_most(harness: Harness) -> None:
    for _ in range(10):
        harness.reloader.reload_for("SIGHUP")
    harness.run_thread()
    harness.run_thread()
    assert (len(harness.applied), harness.busy) == (2, 0)


@pytest.mark.parametrize("where", ["read", "prepared"])
def test_an_invalid_configuration_changes_nothing_and_the_next_one_works(harness: Harness, where: str) -> None:
    error = ConfigError([Problem("passthrough.listen", "is wrong")])
    if where == "read":
        harness.wanted = error
    else:
        harness.breaks = error
    done = harness.reloader.reload()
    harness.run_thread()
    assert outcome(done) is error
    assert (harness.applied, harness.reloader.settings) == ([], Settings())
    harness.wanted, harness.breaks = DELAYED, None
    harness.reloader.reload()
    harness.run_thread()
    assert harness.applied == [DELAYED]


def test_a_signal_with_an_invalid_configuration_is_handled(harness: Harness) -> None:
    harness.wanted = ConfigError([Problem("", "is wrong")])
    harness.reloader.reload_for("SIGHUP")
    harness.run_thread()
    assert harness.applied == []


def test_a_fault_of_the_gateway_is_logged_and_changes_nothing(harness: Harness, logged_failures: Any) -> None:
    harness.wanted = ZeroDivisionError()
    done = harness.reloader.reload()
    harness.run_thread()
    assert isinstance(outcome(done), ZeroDivisionError)
    assert harness.applied == []
    assert len(logged_failures.flush()) == 1


def test_a_client_that_leaves_does_not_stop_the_reload(harness: Harness) -> None:
    done = harness.reloader.reload()
    done.cancel()
    assert isinstance(outcome(done), CancelledError)
    harness.run_thread()
    assert len(harness.applied) == 1


@pytest.mark.parametrize("when", ["before", "while it reads"])
def test_a_gateway_that_drains_does_not_reload(harness: Harness, when: str) -> None:
    if when == "before":
        harness.reloader.stop()
        done = harness.reloader.reload()
    else:
        done = harness.reloader.reload()
        harness.reloader.stop()
        harness.run_thread()
    assert isinstance(outcome(done), Draining)
    assert harness.applied == []


def test_when_how_and_for_whom_the_last_reload_ended_is_known(harness: Harness) -> None:
    def state() -> ReloadState:
        found: ReloadState = outcome(harness.reloader.state())
        return found

    assert state() == ReloadState(read_at=100.0)
    harness.seconds, harness.wanted = 200.0, DELAYED
    harness.reloader.reload_for("SIGHUP")
    harness.run_thread()
    succeeded = ReloadEnd(at=200.0, by="SIGHUP", result="succeeded", changed=("passthrough.drain_delay", "a file"))
    assert state() == ReloadState(read_at=200.0, last=succeeded)
    harness.seconds, harness.wanted = 300.0, ConfigError([Problem("passthrough.listen", "is wrong")], ["a warning"])
    harness.reloader.reload()
    harness.run_thread()
    refused = ReloadEnd(
        at=300.0, by="API", result="invalid", problems=("passthrough.listen: is wrong",), warnings=("a warning",)
    )
    assert state() == ReloadState(read_at=200.0, last=refused)


def test_a_reload_that_several_share_names_them(harness: Harness) -> None:
    harness.reloader.reload()
    for _ in range(2):
        harness.reloader.reload()
        harness.reloader.reload_for("SIGHUP")
    harness.run_thread()
    harness.run_thread()
    last = outcome(harness.reloader.state()).last
    assert last.by == "API, SIGHUP"


def test_of_a_fault_of_the_gateway_no_more_than_its_kind_is_kept(harness: Harness, logged_failures: Any) -> None:
    harness.wanted = ZeroDivisionError("with a secret")
    harness.reloader.reload()
    harness.run_thread()
    last = outcome(harness.reloader.state()).last
    assert (last.result, last.problems) == ("failed", ("ZeroDivisionError; the log says more.",))
    logged_failures.flush()


class Signals:
    """A process's handlers and its terminal."""

    def __init__(self, former: object = signal.SIG_DFL) -> None:
        self.handler: Any = former
        self.terminal = True
        self.told: list[tuple[str, str]] = []
        self.clock = Clock()
        self.clock.callFromThread = lambda function, *args: self.clock.callLater(0, function, *args)  # type: ignore[attr-defined]  # a reactor has it
        self.hang_up = HangUp(self.clock, has_terminal=lambda: self.terminal, set_handler=self._set)

    def _set(self, number: int, handler: object) -> object:
        assert number == signal.SIGHUP
        former, self.handler = self.handler, handler
        return former

    def install(self) -> None:
        self.hang_up.install(
            lambda name: self.told.append(("reload", name)), lambda name: self.told.append(("stop", name))
        )

    def hup(self) -> list[tuple[str, str]]:
        self.handler(signal.SIGHUP, None)
        self.clock.advance(0)
        return self.told


def test_a_hang_up_reloads_in_the_reactors_own_turn() -> None:
    signals = Signals()
    signals.install()
    signals.handler(signal.SIGHUP, None)
    assert signals.told == []
    signals.clock.advance(0)
    assert signals.told == [("reload", "SIGHUP")]


def test_a_hang_up_during_the_start_waits_for_its_end() -> None:
    signals = Signals()
    assert signals.hup() == []
    assert signals.hup() == []
    signals.install()
    signals.clock.advance(0)
    assert signals.told == [("reload", "SIGHUP")]


def test_a_terminal_that_closed_stops_the_gateway() -> None:
    signals = Signals()
    signals.install()
    signals.hup()
    signals.terminal = False
    assert signals.hup() == [("reload", "SIGHUP"), ("stop", "SIGHUP")]


def test_a_gateway_of_nohup_outlives_its_terminal() -> None:
    signals = Signals(signal.SIG_IGN)
    signals.install()
    signals.terminal = False
    assert signals.hup() == [("reload", "SIGHUP")]


def test_what_became_of_reloads_is_counted_and_when_the_last_one_succeeded(
    harness: Harness, logged_failures: Any
) -> None:
    reloader = harness.reloader
    assert (reloader.succeeded_at, reloader.last_failed) == (100.0, False)
    harness.seconds = 200.0
    harness.wanted = ConfigError([Problem("", "is wrong")])
    reloader.reload_for("SIGHUP")
    harness.run_thread()
    assert (reloader.succeeded_at, reloader.last_failed) == (100.0, True)
    harness.wanted = ZeroDivisionError()
    reloader.reload_for("SIGHUP")
    harness.run_thread()
    harness.wanted = attrs.evolve(DELAYED, listen=("tcp:4711",))
    reloader.reload_for("SIGHUP")
    harness.run_thread()
    assert reloader.results == {"succeeded": 1, "invalid": 1, "failed": 1}
    assert (reloader.succeeded_at, reloader.last_failed) == (200.0, False)
    assert reloader.restart_needed == ("passthrough.listen",)
    logged_failures.flush()
