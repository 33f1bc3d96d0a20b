"""The supervisor's part in the limits of servers, queues and entries: they are exact over all workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted_vllm.upstreams.shared.claims import (
    CLAIMS,
    GRANTS,
    USED,
    Claims,
    EntryGrant,
    Grant,
    Grants,
    Used,
)
from twisted_vllm.upstreams.shared.entry_windows import EntryWindows
from twisted_vllm.upstreams.shared.places import Places
from twisted_vllm.workers.hub import Hub

#: limits that nobody uses any more are forgotten when there are so many
MANY = 4_096


class LimitKeeper:
    """Answers the claims of workers. What a worker held that has ended is free at once."""

    def __init__(self, hub: Hub, clock: Any) -> None:
        """Set up.

        Args:
            hub: connects the workers.
            clock: the reactor's clock.
        """
        self._hub = hub
        self._clock = clock
        self._places: dict[str, Places] = {}
        self._entries: dict[str, EntryWindows] = {}
        # when an entry has room again
        self._timers: dict[str, Any] = {}
        # what each round of claims waits for
        self._rounds: dict[tuple[int, int], set[str]] = {}
        # what is to be told at the end of what is being done
        self._grants: dict[int, list[Grant]] = {}
        self._entry_grants: dict[int, list[EntryGrant]] = {}
        hub.on(CLAIMS, Claims, self._claimed)
        hub.on(USED, list[Used], self._used)
        hub.on_left(self._left)

    def stop(self) -> None:
        """Grant nothing by time any more. Idempotent."""
        for timer in self._timers.values():
            if timer.active():
                timer.cancel()
        self._timers.clear()

    def _claimed(self, message: Claims, process: int) -> None:
        names: dict[str, None] = {}
        for claim in message.claims:
            places = self._places.get(claim.name)
            if places is None:
                self._forget_unused()
                places = self._places[claim.name] = Places(claim.name)
            places.claim(process, claim)
            names[claim.name] = None
        if message.round:
            self._rounds[process, message.round] = set(names)
        self._balance(names)
        for claim in message.claims:
            if not (claim.recall or claim.returned):
                for other, grant in self._places[claim.name].ask_again(process):
                    self._grants.setdefault(other, []).append(grant)
        for entry in message.entries:
            windows = self._entries.get(entry.name)
            if windows is None:
                windows = self._entries[entry.name] = EntryWindows(entry.name)
            windows.claim(process, entry)
            self._grant(entry.name)
        self._tell()

    def _used(self, message: list[Used], process: int) -> None:
        now = self._clock.seconds()
        for used in message:
            windows = self._entries.get(used.entry)
            if windows is not None:
                windows.used(process, used, now)
        for name in dict.fromkeys(used.entry for used in message):
            self._grant(name)
        self._tell()

    def _left(self, process: int) -> None:
        for key in [key for key in self._rounds if key[0] == process]:
            del self._rounds[key]
        self._balance([places.name for places in self._places.values() if places.left(process)])
        for windows in self._entries.values():
            windows.left(process)
            self._grant(windows.name)
        self._tell()

    def _balance(self, names: Iterable[str]) -> None:
        for name in names:
            for process, grant in self._places[name].balance():
                self._grants.setdefault(process, []).append(grant)

    def _grant(self, name: str) -> None:
        windows = self._entries.get(name)
        if windows is None:
            return
        timer = self._timers.pop(name, None)
        if timer is not None and timer.active():
            timer.cancel()
        now = self._clock.seconds()
        grants, until = windows.grant(now)
        for process, grant in grants.items():
            self._entry_grants.setdefault(process, []).append(grant)
        if until is not None:
            self._timers[name] = self._clock.callLater(max(until - now, 0.0), self._room_came, name)

    def _room_came(self, name: str) -> None:
        self._timers.pop(name, None)
        self._grant(name)
        self._tell()

    def _tell(self) -> None:
        """Send what was granted, and tell whose claims are answered."""
        answered: dict[int, list[int]] = {}
        for (process, number), names in list(self._rounds.items()):
            if not any(name in self._places and self._places[name].waits_for(process) for name in names):
                del self._rounds[process, number]
                answered.setdefault(process, []).append(number)
        grants, self._grants = self._grants, {}
        entries, self._entry_grants = self._entry_grants, {}
        for process in {**answered, **grants, **entries}:
            message = Grants(answered.get(process, []), grants.get(process, []), entries.get(process, []))
            self._hub.send(process, GRANTS, message)

    def _forget_unused(self) -> None:
        if len(self._places) >= MANY:
            self._places = {name: each for name, each in self._places.items() if not each.is_idle}
        if len(self._entries) >= MANY:
            # what they counted in the last minute is lost: nobody has asked for them since the settings changed
            self._entries = {name: each for name, each in self._entries.items() if not each.is_idle}
