"""A reload in all processes of a gateway, or in none.

The supervisor asks each process to read and prepare the settings. Only if all have, and have read the same, it has all
put them into effect; else nothing changes anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.app.reload import Planned, Reloader
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.reload import Reloaded
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import ReloadFailed
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.processes import name_of
from twisted_vllm.workers.siblings import Siblings
from twisted_vllm.workers.topics import NoAnswer

#: what the messages are about
RELOAD, PREPARE, APPLY, DISCARD = "reload", "reload.prepare", "reload.apply", "reload.discard"

#: seconds that a process has to read and prepare the settings, and to put them into effect
PREPARE_SECONDS, APPLY_SECONDS = 60.0, 10.0

#: a file that changes while the processes read it is read so often
ATTEMPTS = 2


class Prepared(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What became of the settings in one process.

    Attributes:
        digest: of what was read; empty if it cannot be used.
        changed: as in `Reloaded`.
        restart_needed: likewise.
        warnings: likewise.
        problems: why they cannot be used: pairs of a path and a text.
        failure: why they could not be read at all; empty otherwise.
    """

    digest: bytes = b""
    changed: tuple[str, ...] = ()
    restart_needed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
    failure: str = ""

    @property
    def is_good(self) -> bool:
        """Whether they can be put into effect."""
        return bool(self.digest)


class Asked(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A process asks for a reload, or the supervisor for its part; `number` tells one reload from another."""

    number: int = 0


def digest_of(settings: Any) -> bytes:
    """Return a digest of settings, secrets included: it is compared, and never shown."""
    found = hashlib.sha256()
    _add(found, settings)
    return found.digest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Secret):
        value = value.reveal()
    if attrs.has(type(value)):
        found.update(type(value).__name__.encode())
        for each in attrs.fields(type(value)):
            found.update(each.name.encode())
            _add(found, getattr(value, each.name))
    elif isinstance(value, Mapping):
        found.update(b"{")
        for key, inner in value.items():
            _add(found, key)
            _add(found, inner)
    elif isinstance(value, tuple | list):
        found.update(b"[")
        for inner in value:
            _add(found, inner)
    elif isinstance(value, set | frozenset):
        found.update(b"<")
        for text in sorted(map(repr, value)):
            found.update(text.encode())
    elif isinstance(value, Enum):
        found.update(repr(value.value).encode())
    elif isinstance(value, str | bytes | int | float | bool) or value is None:
        found.update(f"{type(value).__name__}:{value!r};".encode())
    else:
        found.update(f"{type(value).__qualname__}:{value!s};".encode())


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
        siblings.answers(PREPARE, Asked, lambda asked, asker: self._prepare())
        siblings.answers(APPLY, Asked, lambda asked, asker: self._apply())
        siblings.on(DISCARD, Asked, lambda asked, asker: self._discard())

    @inlineCallbacks
    def ask(self) -> Any:
        """Have all processes reload.

        Raises:
            ConfigError: the settings cannot be used. Nothing was changed.
            ReloadFailed: a process could not take part.
        """
        try:
            outcome: Prepared = yield self._siblings.ask(
                RELOAD, Asked(), Prepared, ATTEMPTS * (PREPARE_SECONDS + APPLY_SECONDS)
            )
        except NoAnswer as error:
            raise ReloadFailed(f"The configuration was not read again: {error}.", retry_after=1) from None
        if outcome.problems:
            raise ConfigError([Problem(path, text) for path, text in outcome.problems], list(outcome.warnings))
        if not outcome.is_good:
            raise ReloadFailed(outcome.failure, retry_after=1)
        return Reloaded(outcome.changed, outcome.restart_needed, outcome.warnings)

    def _prepare(self) -> Deferred[Prepared]:
        self._planned = None
        preparing: Deferred[Planned] = self._reloader.plan()

        def planned(found: Planned) -> Prepared:
            self._planned = found
            plan = found.plan
            changed = tuple(dict.fromkeys((*plan.changed, *found.files)))
            return Prepared(digest_of(found.read), changed, plan.restart_needed, tuple(plan.settings.warnings))

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
    return Prepared(failure=f"The configuration could not be read again: {type(error).__name__}; the log says more.")


class ReloadCoordinator:
    """The supervisor's part: one reload at a time; those who ask meanwhile share the next one."""

    _log = Logger()

    def __init__(
        self,
        hub: Hub,
        prepare: Callable[[], Deferred[tuple[Prepared, Callable[[], None]]]],
        begun: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """Answer the processes that ask for a reload.

        Args:
            hub: asks the processes.
            prepare: reads the settings in the supervisor, whose part is put into effect by what it returns.
            begun: is called when a reload begins.
            ended: is called when it has ended.
        """
        self._hub = hub
        self._prepare = prepare
        self._begun = begun
        self._ended = ended
        self._running = False
        self._waiting: list[Deferred[Prepared]] = []
        self._number = 0
        hub.answers(RELOAD, Asked, lambda asked, asker: self.reload())

    def reload(self) -> Deferred[Prepared]:
        """Reload in all processes, or in none."""
        done: Deferred[Prepared] = Deferred()
        self._waiting.append(done)
        if not self._running:
            self._run()
        return done

    @inlineCallbacks
    def _run(self) -> Any:
        self._running = True
        self._begun()
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                outcome: Prepared = yield self._reload()
            except Exception:
                self._log.failure("The configuration could not be read again; nothing was changed")
                outcome = Prepared(failure="The configuration could not be read again; the log says more.")
            self._tell(outcome)
            for done in waiting:
                done.callback(outcome)
        self._running = False
        self._ended()

    @inlineCallbacks
    def _reload(self) -> Any:
        outcome = Prepared()
        for _ in range(ATTEMPTS):
            self._number += 1
            asked = Asked(self._number)
            own: tuple[Prepared, Callable[[], None]] = yield self._prepare()
            answers: dict[int, Prepared] = yield self._hub.ask_all(PREPARE, asked, Prepared, PREPARE_SECONDS)
            outcome = _together(own[0], answers, self._hub.ready)
            if outcome.is_good:
                applied: dict[int, None] = yield self._hub.ask_all(APPLY, asked, type(None), APPLY_SECONDS)
                own[1]()
                late = self._hub.ready.keys() - applied.keys()
                if late:
                    names = ", ".join(sorted(name_of(self._hub.ready[number]) for number in late))
                    return Prepared(failure=f"The new configuration is not in effect in {names}: restart the gateway.")
                return outcome
            self._hub.share(DISCARD, asked)
            if outcome.problems or outcome.failure != DIFFERENT:
                break
        return outcome

    def _tell(self, outcome: Prepared) -> None:
        if outcome.problems:
            problems = str(ConfigError([Problem(path, text) for path, text in outcome.problems]))
            self._log.error("The configuration cannot be used; nothing was changed:\n{problems}", problems=problems)
        elif not outcome.is_good:
            self._log.error("{reason}", reason=outcome.failure)


#: the processes did not read the same
DIFFERENT = "The processes read different configurations: the file changed meanwhile. Nothing was changed. Try again."


def _together(own: Prepared, answers: Mapping[int, Prepared], asked: Mapping[int, int]) -> Prepared:
    """Return what came of a reload: good only if it is in each process, and the same."""
    for each in (own, *answers.values()):
        if not each.is_good:
            return each
    silent = sorted(name_of(slot) for number, slot in asked.items() if number not in answers)
    if silent:
        return Prepared(failure=f"{', '.join(silent)} did not read the configuration in time. Nothing was changed.")
    if len({each.digest for each in (own, *answers.values())}) > 1:
        return Prepared(failure=DIFFERENT)
    # what needs a restart, and what files differ, is the same in all but for what only some of them open
    changed = tuple(dict.fromkeys(path for each in answers.values() for path in each.changed))
    restart = tuple(dict.fromkeys(path for each in answers.values() for path in each.restart_needed))
    return Prepared(own.digest, changed, restart, own.warnings)
