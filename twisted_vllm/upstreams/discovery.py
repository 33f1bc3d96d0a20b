"""Follows the names of services: resolves each again and again, and tells when the servers of one have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import DiscoverySettings
from twisted_vllm.upstreams.discovered import Answer, Found, Knowledge, ServiceName, seconds_until_next

#: resolves a name, as `NameLookup.look_up`
LookUp = Callable[[ServiceName, DiscoverySettings], Deferred[Answer]]


class LookupFailed(Exception):
    """No DNS server answered, or one answered with an error."""


class _Followed:
    """A name that is followed."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self.until = 0.0
        self.knowledge = Knowledge()
        self.asking: Deferred[None] | None = None
        self.next: IDelayedCall | None = None
        self.left_out = 0


class Discovery:
    """Follows names, from `start` to `stop`.

    Attributes:
        settings: how often and whom to ask; may be replaced at any time.
        on_changed: called with each name whose servers have changed.
    """

    _log = Logger()

    def __init__(
        self, look_up: LookUp, clock: IReactorTime, settings: DiscoverySettings, changed: Callable[[], None]
    ) -> None:
        """Make it.

        Args:
            look_up: resolves a name.
            clock: the reactor's clock.
            settings: how often and whom to ask.
            changed: called when the servers of a name have changed.
        """
        self.settings = settings
        self._look_up = look_up
        self._clock = clock
        self._changed = changed
        self._followed: dict[ServiceName, _Followed] = {}
        self._running = False
        self.on_changed: Callable[[ServiceName], None] = lambda name: None

    @property
    def known(self) -> Mapping[ServiceName, tuple[Found, ...]]:
        """The servers of each name."""
        return {name: each.knowledge.found for name, each in self._followed.items()}

    def answer_of(self, name: ServiceName) -> Answer | None:
        """Return what DNS said last of a name, valid for what is left of its time; None if nothing current is known."""
        each = self._followed.get(name)
        if each is None or each.answer is None or each.knowledge.failing:
            return None
        return msgspec.structs.replace(each.answer, ttl=max(each.until - self._clock.seconds(), 0.0))

    def refresh_name(self, name: ServiceName) -> None:
        """Resolve a name now, if it is followed."""
        each = self._followed.get(name)
        if each is not None and self._running and each.asking is None:
            self._ask(name)

    def follow(self, names: Iterable[ServiceName]) -> None:
        """Follow these names and no others. What is known of a name that stays is kept."""
        wanted = frozenset(names)
        for name in [name for name in self._followed if name not in wanted]:
            self._give_up(self._followed.pop(name))
        for name in sorted(wanted - self._followed.keys(), key=lambda each: each.host):
            self._followed[name] = _Followed()
            if self._running:
                self._ask(name)

    def start(self) -> None:
        """Resolve all names."""
        self._running = True
        self.refresh()

    def refresh(self) -> None:
        """Resolve all names now."""
        for name, each in list(self._followed.items()):
            if self._running and each.asking is None:
                self._ask(name)

    def stop(self) -> None:
        """Resolve nothing any more. Idempotent."""
        self._running = False
        for each in self._followed.values():
            self._give_up(each)

    def _ask(self, name: ServiceName) -> None:
        each = self._followed[name]
        _cancel(each)
        asking = self._look_up(name, self.settings)
        # it may have fired already, and has its next time then
        done = asking.addCallbacks(self._answered, self._failed, callbackArgs=(name, each), errbackArgs=(name, each))
        if not done.called:
            each.asking = done

    def _answered(self, answer: Answer, name: ServiceName, each: _Followed) -> None:
        each.asking = None
        if each.knowledge.failing:
            self._log.info("The name {name} is resolved again", name=name.host)
        if answer.left_out and answer.left_out != each.left_out:
            self._log.warn(
                "The name {name} has {count} servers over passthrough.discovery.max_servers: these are not used",
                name=name.host,
                count=answer.left_out,
            )
        each.left_out = answer.left_out
        wait = seconds_until_next(answer, self.settings.interval)
        each.answer, each.until = answer, self._clock.seconds() + wait
        changed = each.knowledge.answered(answer)
        self._again(name, each, wait)
        if changed:
            self._log.info(
                "The name {name} has {count} servers: {servers}",
                name=name.host,
                count=len(answer.found),
                servers=", ".join(found.address for found in answer.found[:16]) + ", …" * (len(answer.found) > 16),
            )
            self.on_changed(name)
            self._changed()

    def _failed(self, failure: Failure, name: ServiceName, each: _Followed) -> None:
        each.asking = None
        if failure.check(CancelledError):
            return
        if not failure.check(LookupFailed):
            self._log.failure("The name {name} could not be resolved", failure, name=name.host)
        if each.knowledge.failed():
            self._log.warn(
                "The name {name} cannot be resolved, so its servers stay as they are ({count}): {reason}",
                name=name.host,
                count=len(each.knowledge.found),
                reason=failure.getErrorMessage(),
            )
        self._again(name, each, seconds_until_next(None, self.settings.interval))

    def _again(self, name: ServiceName, each: _Followed, seconds: float) -> None:
        if self._running and self._followed.get(name) is each:
            each.next = self._clock.callLater(seconds, self._ask, name)

    @staticmethod
    def _give_up(each: _Followed) -> None:
        _cancel(each)
        asking, each.asking = each.asking, None
        if asking is not None:
            asking.cancel()


def _cancel(each: _Followed) -> None:
    waiting, each.next = each.next, None
    if waiting is not None and waiting.active():
        waiting.cancel()
