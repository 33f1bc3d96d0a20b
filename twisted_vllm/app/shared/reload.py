"""A reload in all processes of a gateway, or in none.

The supervisor asks each process to read and prepare the settings. Only if all have, and have read the same, it has all
put them into effect; else nothing changes anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.app.reload import BY_API, Planned, Reloader, end_of, tell_reload, together_by
from twisted_vllm.app.shared.settings_digest import Fingerprint, fingerprint_of
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.reload import FAILED, Reloaded, ReloadEnd, ReloadState
from twisted_vllm.errors import Draining, ReloadFailed
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.processes import name_of
from twisted_vllm.workers.siblings import Siblings
from twisted_vllm.workers.topics import NoAnswer

#: what the messages are about
RELOAD, PREPARE, APPLY, DISCARD = "reload", "reload.prepare", "reload.apply", "reload.discard"
IN_EFFECT, STATE = "reload.in_effect", "reload.state"

#: who asks for a reload when processes have different settings
BY_PROCESS = "a process that began"

#: seconds that a process has to read and prepare the settings, and to put them into effect
PREPARE_SECONDS, APPLY_SECONDS = 60.0, 10.0

#: a file that changes while the processes read it is read so often
ATTEMPTS = 2

#: seconds that who asks for a reload waits at most: for one that runs already, and for the next
RELOAD_SECONDS = 2 * ATTEMPTS * (PREPARE_SECONDS + APPLY_SECONDS)


class Prepared(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What became of the settings in one process, or in all.

    Attributes:
        read: the digests of what was read; None if it cannot be used.
        changed: as in `Reloaded`.
        restart_needed: likewise.
        warnings: likewise.
        problems: why they cannot be used: pairs of a path and a text.
        failure: why they could not be read at all; empty otherwise.
        leaves: whether the process drains, and has no part in it.
        is_mixed: whether the processes did not find the same, so that reading again may help.
    """

    read: Fingerprint | None = None
    changed: tuple[str, ...] = ()
    restart_needed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
    failure: str = ""
    leaves: bool = False
    is_mixed: bool = False


class SharedReload:
    """The part of one process.

    A reload that it is asked for goes to the supervisor, which asks all processes, this one included.
    """

    def __init__(self, siblings: Siblings, reloader: Reloader) -> None:
        """Hear the supervisor.

        Args:
            siblings: the way to the supervisor.
            reloader: reads and prepares the settings, and puts them into effect.
        """
        self._siblings = siblings
        self._reloader = reloader
        self._planned: Planned | None = None
        reloader.coordinate = self.ask
        reloader.ask_state = self.ask_state
        siblings.answers(PREPARE, type(None), lambda asked, asker: self._prepare())
        siblings.answers(APPLY, type(None), lambda asked, asker: self._apply())
        siblings.answers(IN_EFFECT, type(None), lambda asked, asker: fingerprint_of(reloader.settings))
        siblings.on(DISCARD, type(None), lambda asked, asker: self._discard())

    def ask_state(self) -> Deferred[ReloadState]:
        """Return what reloads did in all processes, or what this one knows if the supervisor does not say."""

        def no_answer(failure: Failure) -> ReloadState:
            # it is busy, or has older code
            failure.trap(NoAnswer)
            own = self._reloader
            return ReloadState(read_at=own.succeeded_at, restart_needed=own.restart_needed)

        return self._siblings.ask(STATE, None, ReloadState).addErrback(no_answer)

    @inlineCallbacks
    def ask(self) -> Any:
        """Have all processes reload, for the API: signals go to the supervisor.

        Raises:
            ConfigError: the settings cannot be used. Nothing was changed.
            ReloadFailed: a process could not take part.
        """
        try:
            outcome: Prepared = yield self._siblings.ask(RELOAD, None, Prepared, RELOAD_SECONDS)
        except NoAnswer as error:
            raise ReloadFailed(f"The configuration was not read again: {error}.", retry_after=1) from None
        if outcome.problems:
            raise ConfigError([Problem(path, text) for path, text in outcome.problems], list(outcome.warnings))
        if outcome.read is None:
            raise ReloadFailed(outcome.failure, retry_after=1)
        return Reloaded(outcome.changed, outcome.restart_needed, outcome.warnings)

    def _prepare(self) -> Deferred[Prepared]:
        self._planned = None
        preparing: Deferred[Planned] = self._reloader.plan()

        def planned(found: Planned) -> Prepared:
            self._planned = found
            plan = found.plan
            changed = tuple(dict.fromkeys((*plan.changed, *found.files)))
            return Prepared(fingerprint_of(found.read), changed, plan.restart_needed, tuple(plan.settings.warnings))

        return preparing.addCallbacks(planned, refused)

    def _apply(self) -> None:
        planned, self._planned = self._planned, None
        if planned is None:
            raise NoAnswer("nothing was prepared")
        self._reloader.put_into_effect(planned)

    def _discard(self) -> None:
        if self._planned is not None:
            self._planned = None
            self._reloader.not_put_into_effect()


def refused(failure: Failure) -> Prepared:
    """Return what is told of settings that cannot be used or read."""
    error: Any = failure.value
    if isinstance(error, ConfigError):
        problems = tuple((each.path, each.message) for each in error.problems)
        return Prepared(problems=problems, warnings=tuple(error.warnings))
    if isinstance(error, Draining):
        return Prepared(leaves=True)
    return Prepared(failure=f"The configuration could not be read again: {type(error).__name__}; the log says more.")


class Own(Protocol):
    """What the supervisor itself does with settings, and with its processes."""

    def prepare(self) -> Deferred[tuple[Prepared, Callable[[], None]]]:
        """Read and prepare the settings; return what came of it, and what puts them into effect."""

    def in_effect(self) -> Fingerprint:
        """Return the digests of the settings in effect."""

    def reload_begun(self) -> None:
        """A reload begins."""

    def reload_ended(self) -> None:
        """It has ended."""

    def end(self, number: int, reason: str) -> None:
        """End a process that goes on with the settings of before; another one replaces it."""


class ReloadCoordinator:
    """The supervisor's part: one reload at a time; those who ask meanwhile share the next one.

    A process that begins has the settings that were in effect then. If a reload changed them meanwhile, all reload once
    more.
    """

    _log = Logger()

    def __init__(self, hub: Hub, own: Own, now: Callable[[], float] = time.time) -> None:
        """Answer the processes that ask for a reload.

        Args:
            hub: asks the processes.
            own: the supervisor's own part.
            now: Unix seconds.
        """
        self._now = now
        self._askers: list[str] = []
        self._state = ReloadState(read_at=now())
        self._hub = hub
        self._own = own
        self._running = False
        self._waiting: list[Deferred[Prepared]] = []
        self._joined: list[int] = []
        hub.answers(RELOAD, type(None), lambda asked, asker: self.reload(BY_API))
        hub.answers(STATE, type(None), lambda asked, asker: self._state)
        hub.on_joined(self._look_at)

    def reload(self, by: str) -> Deferred[Prepared]:
        """Reload in all processes, or in none.

        Args:
            by: who asks.
        """
        self._askers.append(by)
        done: Deferred[Prepared] = Deferred()
        self._waiting.append(done)
        if not self._running:
            self._run()
        return done

    @inlineCallbacks
    def _run(self) -> Any:
        self._running = True
        self._own.reload_begun()
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            by, self._askers = together_by(self._askers), []
            try:
                outcome: Prepared = yield self._reload()
            except Exception:
                self._log.failure("The configuration could not be read again")
                outcome = Prepared(failure="The configuration could not be read again; the log says more.")
            self._tell(outcome)
            self._state = self._state.after(_end_of(outcome, self._now(), by))
            for done in waiting:
                done.callback(outcome)
        self._running = False
        self._own.reload_ended()
        joined, self._joined = self._joined, []
        for number in joined:
            self._look_at(number)

    @inlineCallbacks
    def _reload(self) -> Any:
        for _ in range(ATTEMPTS):
            own, apply = yield self._own.prepare()
            asked = self._hub.ready
            answers: dict[int, Prepared] = yield self._hub.ask_all(PREPARE, None, Prepared, PREPARE_SECONDS)
            # a process that has ended meanwhile has no say
            silent = [slot for number, slot in asked.items() if number not in answers and number in self._hub.ready]
            taking_part = {number: each for number, each in answers.items() if not each.leaves}
            outcome = together(own, list(taking_part.values()), silent)
            if outcome.read is not None:
                # first: a process that begins from now on has the new settings
                apply()
                yield self._apply(taking_part)
                return outcome
            for number in taking_part:
                self._hub.send(number, DISCARD, None)
            if not outcome.is_mixed:
                break
        return outcome

    @inlineCallbacks
    def _apply(self, taking_part: Iterable[int]) -> Any:
        asking = {number: self._hub.ask(number, APPLY, None, type(None), APPLY_SECONDS) for number in taking_part}
        results: list[tuple[bool, Any]] = yield DeferredList(list(asking.values()), consumeErrors=True)
        for number, (applied, _) in zip(asking, results, strict=True):
            if not applied and number in self._hub.ready:
                self._own.end(number, "did not put the new configuration into effect")

    def _look_at(self, number: int) -> None:
        """Reload once more if a process began with other settings than those in effect."""
        if self._running:
            self._joined.append(number)
            return
        asking = self._hub.ask(number, IN_EFFECT, None, Fingerprint)
        # without an answer it has ended, or is looked after otherwise
        asking.addCallbacks(self._compare, lambda failure: failure.trap(NoAnswer), (number,))

    def _compare(self, found: Fingerprint, number: int) -> None:
        if self._running:
            self._joined.append(number)
        elif found.differs(self._own.in_effect()):
            self._log.info("A process began with another configuration than the others: all read it again")
            self.reload(BY_PROCESS)

    def _tell(self, outcome: Prepared) -> None:
        if outcome.problems:
            problems = str(ConfigError([Problem(path, text) for path, text in outcome.problems]))
            self._log.error("The configuration cannot be used; nothing was changed:\n{problems}", problems=problems)
        elif outcome.read is None:
            self._log.error("{reason}", reason=outcome.failure)
        else:
            tell_reload(self._log, outcome.changed, outcome.restart_needed, outcome.warnings)


def _end_of(outcome: Prepared, at: float, by: str) -> ReloadEnd:
    """Return how a reload in all processes ended."""
    if outcome.read is not None:
        result = Reloaded(outcome.changed, outcome.restart_needed, outcome.warnings)
        return end_of(result, at, by)
    if outcome.problems:
        problems = [Problem(path, text) for path, text in outcome.problems]
        return end_of(Failure(ConfigError(problems, outcome.warnings)), at, by)
    return ReloadEnd(at=at, by=by, result=FAILED, problems=(outcome.failure,))


#: the processes did not read the same
DIFFERENT = "The processes read different configurations: the file changed meanwhile. Nothing was changed. Try again."

#: no process is left that would reload
SHUTS_DOWN = "The gateway is shutting down: its configuration is not read again."


def together(own: Prepared, others: Sequence[Prepared], silent: Sequence[int]) -> Prepared:
    """Return what comes of a reload: good only if it is in each process, and the same.

    Args:
        own: of the supervisor.
        others: of the processes.
        silent: the slots of those that did not answer.
    """
    is_mixed = any(each.read is None for each in others) and any(each.read is not None for each in others)
    for each in (own, *others):
        if each.read is None:
            return msgspec.structs.replace(each, is_mixed=is_mixed)
    if silent:
        names = ", ".join(sorted(map(name_of, silent)))
        return Prepared(failure=f"{names} did not read the configuration in time. Nothing was changed.")
    if not others:
        return Prepared(failure=SHUTS_DOWN)
    read = [each.read for each in (own, *others) if each.read is not None]
    if any(one.differs(other) for one in read for other in read):
        return Prepared(failure=DIFFERENT, is_mixed=True)
    # what needs a restart, and what files differ, is the same in all but for what only some of them open
    changed = tuple(dict.fromkeys(path for each in others for path in each.changed))
    restart = tuple(dict.fromkeys(path for each in others for path in each.restart_needed))
    return Prepared(own.read, changed, restart, own.warnings)
