"""What active checks find out, and when they are sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionRefusedError, TimeoutError
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from tests.proxy.gateway_fakes import server
from twisted_vllm.config.settings import HealthSettings, Server
from twisted_vllm.upstreams.breaker import CLOSED, DEAD, HALF_OPEN, OPEN, Breaker
from twisted_vllm.upstreams.health_checks import RECOVERY_INTERVAL, HealthChecks
from twisted_vllm.upstreams.probe import Answer
from twisted_vllm.upstreams.server_state import ServerState

HEALTH, SLEEP, VERSION = b"/health", b"/is_sleeping", b"/version"
SETTINGS = HealthSettings()
assert SETTINGS.interval is not None
INTERVAL, TIMEOUT = SETTINGS.interval, SETTINGS.timeout


class FakeProber:
    """Answers each question by the server's `answers`: a status, an error, ``frozen``, or a status and a body.

    Attributes:
        asked: the time, the server and the path of each question.
        waiting: the questions without an answer.
        given_up: how many were cancelled.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.answers: dict[tuple[str, bytes], Any] = {}
        self.asked: list[tuple[float, str, bytes]] = []
        self.waiting: list[Deferred[Answer]] = []
        self.given_up = 0

    def get(self, server: Server, path: bytes, *, timeout: float, max_body: int = 0) -> Deferred[Answer]:
        self.asked.append((self._clock.seconds(), server.name, path))
        answer = self.answers.get((server.name, path), 200 if path == HEALTH else 404)
        if isinstance(answer, BaseException):
            return fail(answer)
        if answer == "frozen":
            found: Deferred[Answer] = Deferred(self._cancelled)
            self.waiting.append(found)
            late = self._clock.callLater(timeout, self._expire, found)
            return found.addBoth(self._in_time, late)
        status, body = answer if isinstance(answer, tuple) else (answer, b"")
        return succeed(Answer(status, body if max_body else b""))

    def _cancelled(self, _: object) -> None:
        self.given_up += 1

    def _in_time(self, result: Answer | Failure, late: Any) -> Answer | Failure:
        if late.active():
            late.cancel()
        return result

    def _expire(self, found: Deferred[Answer]) -> None:
        found.errback(Failure(TimeoutError()))

    def times(self, name: str, path: bytes = HEALTH) -> list[float]:
        return [at for at, asked, of in self.asked if (asked, of) == (name, path)]


class Fleet:
    """Servers under checks."""

    def __init__(self, count: int = 1, settings: HealthSettings = SETTINGS, begin: float = 0.0) -> None:
        self.clock = Clock()
        self.clock.advance(begin)
        self.prober = FakeProber(self.clock)
        self.states = [self.make(f"gpu-{number}:8000") for number in range(1, count + 1)]
        self.dead: list[tuple[float, str, str]] = []
        self.alive: list[tuple[float, str]] = []
        self.checks = HealthChecks(
            self.states,
            self.prober,  # type: ignore[arg-type]  # only `get` is called
            self.clock,
            settings,
            on_dead=lambda state, reason: self.dead.append((self.clock.seconds(), state.name, reason)),
            on_alive=lambda state: self.alive.append((self.clock.seconds(), state.name)),
        )
        self.checks.start()

    def make(self, name: str) -> ServerState:
        breaker = Breaker(
            allowed_fails=3, cooldown=5.0, max_cooldown=60.0, slow_start=30.0, random=lambda: 0.0, now=0.0
        )
        return ServerState(server(name), breaker)

    @property
    def one(self) -> ServerState:
        return self.states[0]

    def answer(self, answer: Any, path: bytes = HEALTH, name: str = "gpu-1:8000") -> None:
        self.prober.answers[name, path] = answer

    def run(self, seconds: float, each: Callable[[], None] | None = None) -> None:
        """Let time pass; `each` is called twenty times a second."""
        clock = self.clock
        if each is not None:
            for _ in range(round(seconds * 20)):
                clock.advance(0.05)
                each()
            return
        end = clock.seconds() + seconds
        while (due := min((call.getTime() for call in clock.getDelayedCalls()), default=end + 1)) <= end:
            clock.advance(max(due - clock.seconds(), 0.0))
        clock.advance(end - clock.seconds())

    def proven(self) -> None:
        """A request is answered."""
        self.one.last_alive = self.clock.seconds()


def test_an_idle_server_is_checked_every_interval() -> None:
    fleet = Fleet()
    fleet.run(4 * INTERVAL)
    times = fleet.prober.times("gpu-1:8000")
    assert len(times) == 4
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([INTERVAL] * 3)
    assert fleet.one.breaker.state == CLOSED


def test_no_check_is_sent_to_what_a_request_just_proved_alive() -> None:
    fleet = Fleet()
    fleet.run(10 * INTERVAL, each=fleet.proven)
    assert {path for _, _, path in fleet.prober.asked} <= {VERSION}
    assert len(fleet.prober.asked) <= 1
    last = fleet.clock.seconds()
    fleet.run(2 * INTERVAL)
    assert fleet.prober.times("gpu-1:8000")[0] == pytest.approx(last + INTERVAL)


@pytest.mark.parametrize("status", [200, 204, 301, 401, 403, 404, 405, 429])
def test_every_answer_that_blames_the_request_says_that_the_server_is_alive(status: int) -> None:
    fleet = Fleet()
    fleet.answer(status)
    fleet.run(5 * INTERVAL)
    assert (fleet.one.breaker.state, fleet.dead) == (CLOSED, [])


@pytest.mark.parametrize(
    ("answer", "reason", "last_resort"),
    [
        (503, "status_503", True),
        (500, "status_500", True),
        (ConnectionRefusedError(), "connection_refused", False),
        ("frozen", "timeout", False),
    ],
    ids=["503", "500", "refused", "frozen"],
)
def test_failed_checks_in_a_row_make_a_server_dead(answer: Any, reason: str, last_resort: bool) -> None:
    fleet = Fleet(2)
    fleet.answer(answer)
    fleet.run(SETTINGS.fall * INTERVAL + TIMEOUT)
    breaker = fleet.one.breaker
    assert (breaker.state, breaker.reason, breaker.last_resort) == (DEAD, reason, last_resort)
    assert [each[1:] for each in fleet.dead] == [("gpu-1:8000", reason)]
    assert fleet.states[1].breaker.closed


def test_a_good_check_begins_the_row_anew() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.answer(503)
        fleet.run((SETTINGS.fall - 1) * INTERVAL)
        fleet.answer(200)
        fleet.run(INTERVAL)
    assert fleet.one.breaker.closed


@given(
    busy=st.floats(0, 20),
    interval=st.floats(0.5, 10),
    timeout=st.floats(0.1, 10),
    fall=st.integers(1, 5),
    servers=st.integers(1, 3),
)
def test_a_frozen_server_is_dead_in_time(busy: float, interval: float, timeout: float, fall: int, servers: int) -> None:
    """However long it answered requests before."""
    fleet = Fleet(servers, HealthSettings(interval=interval, timeout=timeout, fall=fall), begin=1e6)
    fleet.run(busy, each=fleet.proven)
    if busy:
        fleet.proven()
    froze = fleet.clock.seconds()
    for path in (HEALTH, VERSION):
        fleet.answer("frozen", path)
    fleet.run(interval * fall + timeout + 1)
    [(at, _, reason)] = fleet.dead
    assert reason == "timeout"
    assert at - froze <= interval * fall + min(timeout, interval) + 1e-3


def test_a_slow_check_of_a_server_that_answered_a_request_meanwhile_does_not_count() -> None:
    fleet = Fleet()
    fleet.answer("frozen")

    def busy() -> None:
        if fleet.prober.waiting and not fleet.prober.waiting[-1].called:
            fleet.proven()

    fleet.run(20 * INTERVAL, each=busy)
    assert len(fleet.prober.asked) > SETTINGS.fall
    assert fleet.dead == []


def test_a_dead_server_is_found_alive_soon() -> None:
    fleet = Fleet()
    fleet.answer(ConnectionRefusedError())
    fleet.run(100 * INTERVAL)
    assert fleet.one.breaker.state == DEAD
    fleet.answer(200)
    back = fleet.clock.seconds()
    promised = fleet.one.breaker.retry_at
    fleet.run(2 * INTERVAL)
    assert fleet.one.breaker.state == CLOSED
    [(at, name)] = fleet.alive
    assert name == "gpu-1:8000"
    assert at - back <= SETTINGS.rise * RECOVERY_INTERVAL + 0.001
    assert at == pytest.approx(promised), "what a client was told is true"
    assert fleet.one.breaker.share(at) < 0.2, "it starts slowly"


def test_one_good_check_revives_no_server() -> None:
    fleet = Fleet(settings=attrs.evolve(SETTINGS, rise=3))
    fleet.answer(503)
    fleet.run(4 * INTERVAL)
    for _ in range(5):
        fleet.answer(200)
        fleet.run(2 * RECOVERY_INTERVAL)
        assert fleet.one.breaker.state == DEAD
        assert fleet.one.breaker.retry_at - fleet.clock.seconds() <= RECOVERY_INTERVAL + 0.001
        fleet.answer(503)
        fleet.run(RECOVERY_INTERVAL)
    fleet.answer(200)
    fleet.run(3 * RECOVERY_INTERVAL)
    assert fleet.one.breaker.closed


def test_what_failed_connections_opened_is_checked_soon_and_closed_by_its_checks() -> None:
    fleet = Fleet()
    fleet.run(INTERVAL)
    for _ in range(4):
        fleet.one.breaker.failed(fleet.clock.seconds(), "connection_lost", fleet.one.breaker.ticket)
    assert fleet.one.breaker.state == OPEN
    fleet.run(SETTINGS.rise * RECOVERY_INTERVAL)
    assert fleet.one.breaker.state == CLOSED
    assert len(fleet.alive) == 1


def test_checks_do_not_close_what_answers_opened() -> None:
    fleet = Fleet()
    for _ in range(4):
        fleet.one.breaker.failed(0.0, "status_503", fleet.one.breaker.ticket, answered=True)
    fleet.run(60.0)
    assert (fleet.one.breaker.state, fleet.alive) == (OPEN, [])


def test_a_trial_on_a_frozen_server_ends_with_its_checks() -> None:
    fleet = Fleet()
    fleet.run(INTERVAL)
    breaker = fleet.one.breaker
    for _ in range(4):
        breaker.failed(fleet.clock.seconds(), "connection_lost", breaker.ticket)
    fleet.answer("frozen")
    fleet.run(5.0)
    breaker.begin(fleet.clock.seconds())
    assert breaker.state in (HALF_OPEN, DEAD)
    fleet.run(SETTINGS.fall * TIMEOUT)
    assert breaker.state == DEAD
    assert len(fleet.dead) == 1


def test_a_want_of_descriptors_blames_no_server() -> None:
    fleet = Fleet()
    fleet.answer(ConnectError(24, "Too many open files"))
    fleet.run(10 * INTERVAL)
    assert (fleet.one.breaker.state, fleet.dead) == (CLOSED, [])
    [checked] = fleet.checks
    assert set(checked.results) == {"unknown"}


def test_checks_of_many_servers_are_spread_over_the_interval() -> None:
    fleet = Fleet(50)
    fleet.run(INTERVAL)
    first = sorted(at for at, _, path in fleet.prober.asked if path == HEALTH)
    assert len(first) == 50
    widest = max(later - earlier for earlier, later in pairwise(first))
    assert widest <= 2.7 * INTERVAL / 50


def test_sleep_is_asked_for_once_where_it_is_not_known_to_exist() -> None:
    fleet = Fleet()
    fleet.run(10 * INTERVAL)
    assert len(fleet.prober.times("gpu-1:8000", SLEEP)) == 1
    fleet.answer(503)
    fleet.run(4 * INTERVAL)
    fleet.answer(200)
    fleet.run(4 * INTERVAL)
    assert len(fleet.prober.times("gpu-1:8000", SLEEP)) == 2, "it may be another process"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"is_sleeping": 1}', b"\xff"])
def test_an_answer_that_says_nothing_of_sleep_is_no_sleep(body: bytes) -> None:
    fleet = Fleet()
    fleet.answer((200, body), SLEEP)
    fleet.run(5 * INTERVAL)
    assert not fleet.one.sleeping
    assert len(fleet.prober.times("gpu-1:8000", SLEEP)) == 1


def test_a_server_that_sleeps_is_noticed_and_so_is_one_that_woke() -> None:
    fleet = Fleet()
    fleet.answer((200, json.dumps({"is_sleeping": False}).encode()), SLEEP)
    fleet.run(2 * INTERVAL)
    assert not fleet.one.sleeping
    fleet.answer((200, json.dumps({"is_sleeping": True}).encode()), SLEEP)
    fleet.run(INTERVAL)
    assert fleet.one.sleeping
    assert (fleet.one.breaker.state, fleet.alive) == (CLOSED, [])
    fleet.answer((200, json.dumps({"is_sleeping": False}).encode()), SLEEP)
    fleet.run(RECOVERY_INTERVAL)
    assert not fleet.one.sleeping
    assert len(fleet.alive) == 1


def test_a_server_that_the_gateway_puts_to_sleep_is_asked_at_once() -> None:
    fleet = Fleet()
    fleet.run(2 * INTERVAL, each=fleet.proven)
    fleet.answer((200, b'{"is_sleeping": true}'), SLEEP)
    fleet.checks.check_now(fleet.one)
    assert fleet.one.sleeping


def test_a_sleep_answer_that_does_not_come_stops_no_checks() -> None:
    fleet = Fleet()
    fleet.answer("frozen", SLEEP)
    fleet.run(5 * INTERVAL)
    assert len(fleet.prober.times("gpu-1:8000")) == 5
    assert fleet.one.breaker.closed


def test_servers_come_and_go_while_it_runs() -> None:
    fleet = Fleet(2)
    fleet.run(INTERVAL)
    fleet.answer("frozen")
    fleet.run(INTERVAL - TIMEOUT / 2)
    gone = fleet.states.pop(0)
    fleet.states.append(fleet.make("gpu-3:8000"))
    fleet.checks.update()
    assert fleet.prober.given_up == 1
    asked = len(fleet.prober.asked)
    fleet.run(4 * INTERVAL)
    names = {name for _, name, _ in fleet.prober.asked[asked:]}
    assert names == {"gpu-2:8000", "gpu-3:8000"}
    assert [(each.number, each.state.name) for each in fleet.checks] == [(2, "gpu-2:8000"), (3, "gpu-3:8000")]
    gone.breaker.declare_dead(0.0, "timeout", 0.0)


def test_other_settings_take_effect_at_once() -> None:
    fleet = Fleet()
    fleet.run(2 * INTERVAL)
    fleet.checks.update(attrs.evolve(SETTINGS, interval=1.0))
    asked = len(fleet.prober.times("gpu-1:8000"))
    fleet.run(10.0)
    assert len(fleet.prober.times("gpu-1:8000")) - asked >= 10


def test_without_checks_a_dead_server_gets_trials_again() -> None:
    fleet = Fleet()
    fleet.answer(503)
    fleet.run(4 * INTERVAL)
    assert fleet.one.breaker.state == DEAD
    fleet.checks.update(attrs.evolve(SETTINGS, interval=None))
    asked = len(fleet.prober.asked)
    fleet.run(10 * INTERVAL)
    assert len(fleet.prober.asked) == asked
    assert fleet.one.breaker.allows(fleet.clock.seconds())


def test_it_stops_with_what_it_waits_for() -> None:
    fleet = Fleet(3)
    fleet.answer("frozen")
    fleet.run(INTERVAL)
    fleet.checks.stop()
    assert fleet.clock.getDelayedCalls() == []
    fleet.one.breaker.declare_dead(0.0, "timeout", 0.0)
    assert fleet.clock.getDelayedCalls() == []


def test_a_clock_that_was_set_back_does_not_stop_the_checks() -> None:
    fleet = Fleet(begin=1e9)
    fleet.run(2 * INTERVAL)
    fleet.proven()
    fleet.clock.rightNow -= 1e6
    asked = len(fleet.prober.asked)
    for call in fleet.clock.getDelayedCalls():
        call.reset(0)
    fleet.run(4 * INTERVAL)
    assert len(fleet.prober.asked) - asked >= 3


def test_each_change_is_one_line_of_the_log() -> None:
    fleet = Fleet()
    with capturedLogs() as events:
        fleet.answer(ConnectionRefusedError())
        fleet.run(20 * INTERVAL)
        fleet.answer(200)
        fleet.run(2 * INTERVAL)
    told = [
        (each["server"], each["previous"], each["state"], each["reason"], each["log_level"].name) for each in events
    ]
    assert told == [
        ("gpu-1:8000", "closed", "dead", "connection_refused", "warn"),
        ("gpu-1:8000", "dead", "closed", "checks_passed", "info"),
    ]


def test_a_server_is_asked_for_its_version_once_after_it_came_back() -> None:
    fleet = Fleet()
    fleet.answer((200, b'{"version": "0.11.0"}'), VERSION)
    fleet.run(5 * INTERVAL)
    assert fleet.one.version == "0.11.0"
    assert len(fleet.prober.times("gpu-1:8000", VERSION)) == 1
    fleet.answer(ConnectionRefusedError())
    fleet.run(10 * INTERVAL)
    fleet.answer((200, b'{"version": "0.12.0"}'), VERSION)
    fleet.answer(200)
    fleet.run(10 * INTERVAL)
    assert fleet.one.version == "0.12.0"
    assert len(fleet.prober.times("gpu-1:8000", VERSION)) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b'{"version": 1}', b'{"version": "a\\nb"}', b"\xff"])
def test_an_answer_that_says_nothing_of_a_version_is_none(body: bytes) -> None:
    fleet = Fleet()
    fleet.answer((200, body), VERSION)
    fleet.run(3 * INTERVAL)
    assert fleet.one.version == ""
    assert len(fleet.prober.times("gpu-1:8000", VERSION)) == 1


def test_a_busy_server_that_is_never_checked_is_asked_for_its_version_all_the_same() -> None:
    fleet = Fleet()
    fleet.answer((200, b'{"version": "0.11.0"}'), VERSION)
    for _ in range(40):
        fleet.one.last_alive = fleet.clock.seconds()
        fleet.run(INTERVAL / 4)
    assert fleet.prober.times("gpu-1:8000", HEALTH) == []
    assert fleet.one.version == "0.11.0"
    assert len(fleet.prober.times("gpu-1:8000", VERSION)) == 1
