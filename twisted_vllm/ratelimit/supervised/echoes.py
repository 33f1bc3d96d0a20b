"""Tells what an administrator did from its echo: each process learns of it from the database, and tells it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

#: seconds within which all processes have told what one of them did
ECHO_SECONDS = 5.0
#: acts to remember; about 300 bytes each
MOST_ACTS = 10_000

#: what was done, when, and who has told it
_Act = tuple[Hashable, float, set[int]]


class Echoes:
    """Remembers for a while what was told of whom, and by which processes.

    A process tells an act once. So what it tells is an echo if another process has told it, and it has not.
    """

    def __init__(self, seconds: float = ECHO_SECONDS, most: int = MOST_ACTS) -> None:
        """Begin without acts.

        Args:
            seconds: how long an act is remembered.
            most: those whose acts are remembered.
        """
        self._seconds = seconds
        self._most = most
        self._acts: OrderedDict[Hashable, list[_Act]] = OrderedDict()

    def __len__(self) -> int:
        """Return of how many anything is remembered."""
        return len(self._acts)

    def is_echo(self, whom: Hashable, act: Hashable, process: int, now: float) -> bool:
        """Return whether a process only tells what another one has told. Whatever it is, it is remembered.

        Args:
            whom: what the act is about.
            act: what was done.
            process: who tells it.
            now: in seconds.
        """
        acts = [each for each in self._acts.pop(whom, ()) if 0 <= now - each[1] < self._seconds]
        self._acts[whom] = acts
        if len(self._acts) > self._most:
            self._acts.popitem(last=False)
        for done, _, processes in acts:
            if done == act and process not in processes:
                processes.add(process)
                return True
        acts.append((act, now, {process}))
        # one who does the same again and again is bounded too
        del acts[:-8]
        return False
