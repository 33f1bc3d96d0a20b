"""Active checks: asks servers whether they work, and tells their breakers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.alert_types import COOLDOWN, OUTAGE
from twisted_vllm.config.settings import HealthSettings
from twisted_vllm.http.client.connect_errors import words_of
from twisted_vllm.http.client.connect_queue import shortage_in
from twisted_vllm.upstreams.breaker import CLOSED, DEAD, HALF_OPEN, Change, fault_of_status, ignore
from twisted_vllm.upstreams.faults import CONNECTION_REFUSED, FAULTS, fault_of_error
from twisted_vllm.upstreams.probe import Answer, Prober
from twisted_vllm.upstreams.server_state import ServerState

#: Seconds between two checks of a server that gets no requests, so that it gets them again soon.
RECOVERY_INTERVAL = 1.0

#: Where vLLM tells whether it sleeps, only with VLLM_SERVER_DEV_MODE (``entrypoints/serve/dev/sleep/api_router.py``).
SLEEP_PATH = b"/is_sleeping"
#: Where vLLM tells its version (``entrypoints/serve/instrumentator/basic.py``).
VERSION_PATH = b"/version"
#: the longest version that is kept, in characters
MAX_VERSION = 64

#: what a server gets in a state, for the log: the names of the states alone could be misread
_GETS = {CLOSED: "requests again", HALF_OPEN: "one request as a trial"}

#: The maximum size of the answer there, in bytes.
MAX_SLEEP_ANSWER = 4_096


#: Seconds that a timer may come too early by rounding.
_ROUNDING = 1e-6

#: The golden ratio's fraction: its multiples spread evenly over 0 to 1, however many there are.
_GOLDEN = 0.6180339887498949


class _Sleep(msgspec.Struct):
    is_sleeping: bool


_decode_sleep = msgspec.json.Decoder(_Sleep).decode


class _Version(msgspec.Struct):
    version: str


_decode_version = msgspec.json.Decoder(_Version).decode


class Checked:
    """A server, and what its checks found.

    Attributes:
        state: The server.
        number: Which server it is, counted from 1, in the order in which they came.
        results: How many checks it ``passed`` and ``failed``; those that the gateway could not make are ``unknown``.
        outages: How often it stopped to get requests, by reason.
    """

    __slots__ = (
        *("asking", "down_as", "down_since", "failed", "has_sleep", "knows_version", "number", "outages", "passed"),
        *("results", "started", "state", "timer", "words"),
    )

    def __init__(self, state: ServerState, number: int) -> None:
        """Begin without a check."""
        self.state = state
        self.number = number
        self.results: Counter[str] = Counter()
        self.outages: Counter[str] = Counter()
        # in a row
        self.passed = self.failed = 0
        # why the last check failed, for the log
        self.words = ""
        # since when it gets no requests, in seconds, and which kind of alert told of it; None and empty if it does
        self.down_since: float | None = None
        self.down_as = ""
        # when the last check began, in seconds
        self.started = float("-inf")
        # whether it has `SLEEP_PATH`; None if that is not known
        self.has_sleep: bool | None = None
        # whether it was asked for its version since it came back
        self.knows_version = False
        self.timer: Any = None
        self.asking: Deferred[Any] | None = None

    def rest(self) -> None:
        """Give up the check that runs and the one that is due. Idempotent."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()
        asking, self.asking = self.asking, None
        if asking is not None:
            asking.cancel()


class HealthChecks:
    """Checks each server every interval in which no request proved that it works.

    A server that stops to answer is dead at most ``interval * fall + timeout`` later, because its first check begins at
    most one interval after the last proof.

    Attributes:
        on_checked: Called with each server that was checked.
    """

    _log = Logger()

    def __init__(
        self,
        servers: Iterable[ServerState],
        prober: Prober,
        clock: Any,
        settings: HealthSettings,
        on_dead: Callable[[ServerState, str], None],
        on_alive: Callable[[ServerState], None] = lambda state: None,
        on_gone: Callable[[ServerState], None] = lambda state: None,
        checks: bool = True,
    ) -> None:
        """Check nothing yet.

        Args:
            servers: The servers; `update` reads them again.
            prober: Sends the checks.
            clock: A provider of IReactorTime.
            settings: How to check. Without an interval nothing is checked; changes of state are logged all the same.
            on_dead: Called when a server was found dead, with the reason: what waits there for a first byte must go
                elsewhere.
            on_alive: Called when a server gets requests again.
            on_gone: Called when nothing listens any more at a server's address: what it knew is lost.
            checks: Whether this process checks, logs and counts. If another one does, this one only follows what that
                tells of the breakers.
        """
        self._servers = servers
        self._prober = prober
        self._clock = clock
        self._settings = settings
        self._on_dead = on_dead
        self._on_alive = on_alive
        self._on_gone = on_gone
        self._checks = checks
        self.on_checked: Callable[[ServerState], None] = lambda state: None
        self._checked: dict[ServerState, Checked] = {}
        self._count = 0
        self._running = False

    def __iter__(self) -> Iterator[Checked]:
        """Return the servers with what their checks found."""
        return iter(self._checked.values())

    def start(self) -> None:
        """Begin to check."""
        self._running = self._checks
        self.update()

    def stop(self) -> None:
        """Check no more. Idempotent."""
        self._running = False
        for each in self._checked.values():
            each.rest()

    def update(self, settings: HealthSettings | None = None) -> None:
        """Check the servers that there are now; by other settings, if they are given."""
        changed = settings is not None and settings != self._settings
        if settings is not None:
            self._settings = settings
        servers = list(self._servers)
        for state in self._checked.keys() - set(servers):
            state.breaker.on_change = ignore
            self._checked.pop(state).rest()
        for state in servers:
            if state not in self._checked:
                self._count += 1
                each = self._checked[state] = Checked(state, self._count)
                state.breaker.on_change = partial(self._changed, each)
        for each in self._checked.values():
            if self._settings.interval is None:
                each.rest()
                each.state.sleeping = False
                each.state.breaker.release(self._clock.seconds())
            elif self._running and each.asking is None:
                if each.timer is None:
                    # the first checks of all servers are spread over the interval
                    self._plan(each, each.number * _GOLDEN % 1.0 * self._pace(each))
                elif changed:
                    self._plan(each)

    def check_now(self, state: ServerState) -> None:
        """Check a server at once: it was told to sleep or to wake."""
        each = self._checked.get(state)
        if each is not None and self._running and self._settings.interval is not None:
            each.rest()
            each.has_sleep = None
            self._check(each)

    def tell_drained(self, state: ServerState) -> None:
        """Log that somebody drained a server, or undrained it."""
        if not self._checks:
            return
        if state.drained is None:
            self._log.info("Server {server} is not drained any more", server=state.name)
        else:
            self._log.info(
                "Server {server} is drained by {by}: {reason}",
                server=state.name,
                by=state.drained.by,
                reason=state.drained.reason or "no reason is given",
            )

    # when

    def _pace(self, each: Checked) -> float:
        """Return the seconds between the beginnings of two checks."""
        interval = self._settings.interval
        assert interval is not None
        is_used = each.state.breaker.closed and not each.state.sleeping
        return interval if is_used else min(interval, RECOVERY_INTERVAL)

    def _due(self, each: Checked, now: float) -> float:
        """Return when the next check begins, in seconds."""
        proofs = (each.started, each.state.last_alive if each.state.breaker.closed else each.started)
        # a proof of the future is none: the clock was set back
        latest = max((proof for proof in proofs if proof <= now), default=now - self._pace(each))
        return max(latest + self._pace(each), now)

    def _plan(self, each: Checked, wait: float | None = None) -> None:
        """Set the timer for the next check, in `wait` seconds or when it is due."""
        if each.timer is not None and each.timer.active():
            each.timer.cancel()
        if wait is None:
            now = self._clock.seconds()
            wait = self._due(each, now) - now
        each.timer = self._clock.callLater(wait, self._visit, each)

    def _visit(self, each: Checked) -> None:
        """Check the server, unless a request proved meanwhile that it works."""
        now = self._clock.seconds()
        # the rounding of a float is no reason to wait again
        if not each.state.breaker.closed or self._due(each, now) <= now + _ROUNDING:
            self._check(each)
        elif each.knows_version:
            self._plan(each)
        else:
            self._only_ask_version(each)

    # a check

    def _check(self, each: Checked) -> None:
        settings = self._settings
        assert settings.interval is not None
        each.started = self._clock.seconds()
        # not longer than the interval: a server must not stay alive for longer than it says
        timeout = min(settings.timeout, settings.interval)
        server = each.state.server
        path = settings.path.encode("ascii")
        asking: Deferred[Any] = maybeDeferred(self._prober.get, server, path, timeout=timeout)
        each.asking = asking
        asking.addCallbacks(self._answered, self._unanswered, callbackArgs=(each, timeout), errbackArgs=(each,))
        asking.addErrback(self._not_known)
        asking.addCallback(self._ended, each, asking)

    def _answered(self, answer: Answer, each: Checked, timeout: float) -> Deferred[None] | None:
        fault = fault_of_status(answer.status)
        if fault is not None:
            self._fails(each, fault, answered=True)
            return None
        self._passes(each)
        if each.has_sleep is False:
            return None if each.knows_version else self._ask_version(each, timeout)
        asking: Deferred[Any] = self._prober.get(
            each.state.server, SLEEP_PATH, timeout=timeout, max_body=MAX_SLEEP_ANSWER
        )
        asking.addCallbacks(self._told_sleep, lambda failure: self._untold(failure, each), callbackArgs=(each,))
        if not each.knows_version:
            asking.addCallback(lambda _: self._ask_version(each, timeout))
        return asking

    def _ask_version(self, each: Checked, timeout: float) -> Deferred[None]:
        """Ask a server for its version, once after it came back: it may have been replaced meanwhile."""
        asking = self._prober.get(each.state.server, VERSION_PATH, timeout=timeout, max_body=MAX_SLEEP_ANSWER)
        return asking.addCallbacks(
            self._told_version, lambda failure: self._untold(failure, each), callbackArgs=(each,)
        )

    def _unanswered(self, failure: Failure, each: Checked) -> None:
        if failure.check(CancelledError):
            return
        assert failure.value is not None
        fault = fault_of_error(failure.value)
        if fault is None:
            each.results["unknown"] += 1
            if shortage_in(failure.value) is None:
                self._not_known(failure)
        elif fault == "timeout" and each.state.last_alive > each.started:
            # it answered a request meanwhile: it is slow, not dead
            each.results["unknown"] += 1
            each.failed = 0
        else:
            self._fails(each, fault, answered=False, words=words_of(failure.value))

    def _not_known(self, failure: Failure) -> None:
        self._log.failure("The check of a server failed by itself", failure, once_a_second=True)

    def _passes(self, each: Checked) -> None:
        each.results["passed"] += 1
        each.failed = 0
        breaker = each.state.breaker
        if each.started < breaker.since and not breaker.closed:
            # it began before what took the server out
            return
        each.passed += 1
        now = self._clock.seconds()
        if not breaker.closed and each.passed >= self._settings.rise:
            breaker.declare_alive(now)
        elif breaker.state == DEAD:
            breaker.retry_at = self._alive_at(each, now)

    def _fails(self, each: Checked, reason: str, *, answered: bool, words: str = "") -> None:
        each.results["failed"] += 1
        each.passed = 0
        each.failed += 1
        breaker = each.state.breaker
        was_dead = breaker.state == DEAD
        if not was_dead and each.failed < self._settings.fall:
            return
        now = self._clock.seconds()
        each.words = words
        breaker.declare_dead(now, reason, 0.0, answered=answered)
        breaker.retry_at = self._alive_at(each, now)
        if not was_dead:
            self._on_dead(each.state, reason)

    def _alive_at(self, each: Checked, now: float) -> float:
        """Return when a dead server can be found alive at the earliest, in seconds."""
        return self._due(each, now) + (self._settings.rise - each.passed - 1) * self._pace(each)

    def _told_sleep(self, answer: Answer, each: Checked) -> None:
        try:
            sleeps = answer.status == 200 and _decode_sleep(answer.body).is_sleeping
            each.has_sleep = answer.status == 200
        except msgspec.DecodeError:
            sleeps = each.has_sleep = False
        state = each.state
        if sleeps != state.sleeping:
            state.sleeping = sleeps
            state.sleep_changed = self._clock.seconds()
            self._log.info("Server {server} {sleeps}", server=state.name, sleeps="sleeps" if sleeps else "is awake")
            if not sleeps:
                self._on_alive(state)

    def _only_ask_version(self, each: Checked) -> None:
        """Ask a busy server, whose requests are its checks, for its version. No answer is a failed check."""
        settings = self._settings
        assert settings.interval is not None
        each.started = self._clock.seconds()
        timeout = min(settings.timeout, settings.interval)
        asking: Deferred[Any] = maybeDeferred(
            self._prober.get, each.state.server, VERSION_PATH, timeout=timeout, max_body=MAX_SLEEP_ANSWER
        )
        each.asking = asking
        asking.addCallbacks(self._told_version, self._unanswered, callbackArgs=(each,), errbackArgs=(each,))
        asking.addErrback(self._not_known)
        asking.addCallback(self._ended, each, asking)

    def _told_version(self, answer: Answer, each: Checked) -> None:
        each.knows_version = True
        version = ""
        try:
            if answer.status == 200:
                version = _decode_version(answer.body).version[:MAX_VERSION]
        except msgspec.DecodeError:
            pass
        each.state.version = version if version.isprintable() else ""

    def _untold(self, failure: Failure, each: Checked) -> None:
        """Leave what is known: the next check asks again, and says whether the server still answers."""
        failure.trap(CancelledError, *FAULTS)

    def _ended(self, _: None, each: Checked, asking: Deferred[Any]) -> None:
        if each.asking is asking:
            each.asking = None
            self._plan(each)
            self.on_checked(each.state)

    # changes

    def _changed(self, each: Checked, change: Change) -> None:
        """Log a change of state, and check a server sooner that gets no requests."""
        state = each.state
        each.passed = 0
        if self._checks:
            self._tell(each, change)
        elif change.state == DEAD:
            self._on_dead(state, change.reason)
        if change.state == DEAD and change.reason == CONNECTION_REFUSED:
            self._on_gone(state)
        if change.state == CLOSED:
            # perhaps another process
            each.has_sleep = None
            each.knows_version = False
            self._on_alive(state)
        if self._running and self._settings.interval is not None and each.asking is None:
            self._plan(each)

    def _tell(self, each: Checked, change: Change) -> None:
        """Log and count a change of state."""
        state = each.state
        log = self._log.info if change.state in (CLOSED, HALF_OPEN) else self._log.warn
        now = self._clock.seconds()
        lasted = ""
        if change.state == CLOSED:
            if each.down_since is not None:
                lasted = f", after {max(now - each.down_since, 0.0):.0f} s without"
            each.down_since = None
        elif each.down_since is None:
            each.down_since = now
            each.outages[change.reason] += 1
        if change.state == DEAD:
            each.down_as = OUTAGE
        elif change.previous == CLOSED:
            each.down_as = COOLDOWN
        log(
            "Server {server} gets {what}{lasted} ({state}, was {previous}): {reason}{words}",
            lasted=lasted,
            # people need not know of each trial
            alert=None if change.state == HALF_OPEN else each.down_as,
            alert_about=state.name,
            server=state.name,
            what=_GETS.get(change.state, "no requests"),
            state=change.state,
            previous=change.previous,
            reason=change.reason,
            words=f", {each.words}" if each.words and change.state == DEAD else "",
            once_a_second=f"{state.name} {change.state}",
        )
