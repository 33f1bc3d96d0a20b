"""The signals that end the process, and the order in which it ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from twisted_vllm.app.drain import Drain, StopSignals


class Reactor(Clock):
    """A clock with a running reactor's signal handlers, which counts how often it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0
        self.later: list[Callable[[], None]] = []

    def callWhenRunning(self, function: Callable[..., None], *args: Any) -> None:
        function(*args)

    def callFromThread(self, function: Callable[..., None], *args: Any) -> None:
        self.later.append(lambda: function(*args))

    def turn(self) -> None:
        later, self.later = self.later, []
        for call in later:
            call()

    def sigTerm(self, number: int, frame: object) -> None: ...

    def sigInt(self, number: int, frame: object) -> None: ...

    def stop(self) -> None:
        assert not self.stops, "a reactor is stopped once"
        self.stops += 1


class Site:
    """A site with one connection, which the test ends."""

    def __init__(self) -> None:
        self.leaving = self.draining = False
        self.aborts = 0
        self.left: Deferred[None] = Deferred()

    def drain(self) -> Deferred[None]:
        self.draining = True
        return self.left

    def abort(self) -> int:
        self.aborts += 1
        return 1


class Port:
    stopped = False

    def stopListening(self) -> Deferred[None]:
        self.stopped = True
        return succeed(None)


def make(delay: float = 0, timeout: float = 30) -> tuple[Reactor, Any, Drain]:
    reactor, site = Reactor(), Site()
    return reactor, site, Drain(reactor, site, delay, timeout)  # type: ignore[arg-type]  # all that it uses of a site


def handlers_of(reactor: Reactor) -> dict[int, Any]:
    return {signal.SIGTERM: reactor.sigTerm, signal.SIGINT: reactor.sigInt}


def test_each_signal_is_told_in_the_reactors_own_turn_until_it_is_restored() -> None:
    reactor = Reactor()
    table = handlers_of(reactor)
    before = dict(table)
    signals = StopSignals(reactor, table.__getitem__, table.__setitem__)
    told: list[str] = []
    signals.install(told.append)
    table[signal.SIGTERM](signal.SIGTERM, None)
    table[signal.SIGINT](signal.SIGINT, None)
    assert told == []
    reactor.turn()
    assert told == ["SIGTERM", "SIGINT"]
    signals.restore()
    signals.restore()
    assert table == before


def test_handlers_that_are_not_the_reactors_stay() -> None:
    reactor = Reactor()
    table = handlers_of(reactor) | {signal.SIGINT: signal.SIG_IGN}
    signals = StopSignals(reactor, table.__getitem__, table.__setitem__)
    signals.install(lambda name: None)
    assert table[signal.SIGINT] is signal.SIG_IGN
    assert table[signal.SIGTERM] != reactor.sigTerm


def test_the_first_signal_stops_the_reactor_and_the_second_cuts_what_is_left() -> None:
    reactor, site, drain = make()
    drain.signalled("SIGTERM")
    assert (reactor.stops, drain.begun) == (1, False)
    port = Port()
    ports: list[Any] = [port]
    done = drain.run(ports)
    assert (drain.begun, port.stopped, ports, site.draining, site.aborts) == (True, True, [], True, 0)
    drain.signalled("SIGINT")
    assert (reactor.stops, site.aborts, done.called) == (1, 1, False)
    site.left.callback(None)
    assert done.called
    assert reactor.getDelayedCalls() == []


def test_two_signals_in_one_turn_cut_as_soon_as_the_drain_begins() -> None:
    reactor, site, drain = make(delay=10)
    drain.signalled("SIGTERM")
    drain.signalled("SIGTERM")
    drain.run([Port()])  # type: ignore[list-item]  # all that it uses of a port
    reactor.advance(0)
    assert (reactor.stops, site.draining, site.aborts) == (1, True, 1)


def test_a_signal_hurries_a_drain_that_began_without_one() -> None:
    reactor, site, drain = make()
    drain.run([])
    drain.signalled("SIGTERM")
    assert (reactor.stops, site.aborts) == (0, 1)


def test_a_signal_after_the_drain_does_nothing() -> None:
    reactor, site, drain = make()
    done = drain.run([])
    site.left.callback(None)
    drain.signalled("SIGTERM")
    assert (done.called, reactor.stops, site.aborts) == (True, 0, 0)


def test_what_does_not_end_is_cut_at_the_timeout() -> None:
    reactor, site, drain = make(timeout=30)
    drain.run([])
    reactor.advance(29.9)
    assert site.aborts == 0
    reactor.advance(0.2)
    assert site.aborts == 1


def test_for_the_delay_it_serves_on_and_the_timeout_comes_after_it() -> None:
    reactor, site, drain = make(delay=5, timeout=30)
    port = Port()
    drain.run([port])  # type: ignore[list-item]  # all that it uses of a port
    reactor.advance(4.9)
    assert (drain.begun, port.stopped, site.leaving, site.draining) == (True, False, True, False)
    reactor.advance(0.2)
    assert (port.stopped, site.draining) == (True, True)
    reactor.advance(29)
    assert site.aborts == 0
    reactor.advance(2)
    assert site.aborts == 1


def test_a_second_signal_ends_the_delay_and_cuts() -> None:
    reactor, site, drain = make(delay=5)
    port = Port()
    drain.signalled("SIGTERM")
    drain.run([port])  # type: ignore[list-item]  # all that it uses of a port
    drain.signalled("SIGTERM")
    reactor.advance(0)
    assert (port.stopped, site.aborts) == (True, 1)
    site.left.callback(None)
    assert reactor.getDelayedCalls() == []


def test_what_does_not_listen_has_nobody_to_wait_for() -> None:
    reactor, site, drain = make(delay=5)
    drain.run([])
    assert site.draining
    site.left.callback(None)
    assert reactor.getDelayedCalls() == []
