"""Windows on the console that stay open: which pages, and what each of them asks the gateway by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

SIGN_IN, FIRST_PAGE = "/ui/sign-in", "/ui"


@attrs.frozen
class Watched:
    """A page, and what its scripts do.

    Attributes:
        path: its address.
        once: what they ask when it is loaded.
        polls: what they ask again and again, and seconds between two.
        events: streams of events that they keep open.
    """

    path: str
    once: Sequence[str] = ()
    polls: Mapping[str, float] = attrs.Factory(dict)
    events: Sequence[str] = ()

    def asks(self, path: str) -> bool:
        """Return whether its scripts are known to ask for this path, whatever the query."""
        known = (self.path, *self.once, *self.polls, *self.events)
        return path.partition("?")[0] in {each.partition("?")[0] for each in known}


#: the pages that a window stays on, by what the report calls them
WATCHED: Mapping[str, Watched] = {
    "Overview": Watched(
        "/ui",
        once=("/ui/overview/spend",),
        polls={
            "/ui/overview/traffic?minutes=15": 5.0,
            "/ui/overview/problems?shown=": 10.0,
            "/ui/overview/spend": 60.0,
        },
    ),
    "Live": Watched("/ui/live", events=("/ui/live/events",)),
    "Servers": Watched("/ui/servers", events=("/ui/servers/events",)),
    "Usage": Watched("/ui/usage"),
    "Keys": Watched("/ui/keys"),
    "Requests": Watched("/ui/requests"),
}
#: the windows that are open at the same time
TEN = ("Overview",) * 2 + ("Live",) * 3 + ("Servers",) * 2 + ("Usage", "Keys", "Requests")


@attrs.frozen
class Loaded:
    """What came of loading a page.

    Attributes:
        received: bytes that a browser received which had nothing of it, compressed as they came.
        again: likewise, when it had the files already.
        paint: milliseconds to the first content on the screen, with nothing kept; None where nothing is drawn.
        paint_again: likewise with the files kept.
    """

    received: int
    again: int
    paint: float | None = None
    paint_again: float | None = None


class Windows(ABC):
    """Windows of several browsers, each signed in.

    Attributes:
        asked: how often each path was asked for since `asked` was cleared last.
        problems: what went wrong.
    """

    def __init__(self) -> None:
        """Open none."""
        self.asked: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()

    @abstractmethod
    def open(self, names: Sequence[str]) -> None:
        """Open one window for each of these names of `WATCHED`, and wait until all are loaded."""

    @abstractmethod
    def close(self) -> None:
        """Leave all pages. Idempotent."""

    @abstractmethod
    def rest(self, seconds: float) -> None:
        """Wait while the pages do what they do."""

    @abstractmethod
    def load(self, path: str) -> Loaded:
        """Load a page in a window of its own, twice, and close it."""

    @abstractmethod
    def navigation(self) -> dict[str, str]:
        """Return the addresses of all pages that the navigation shows, by their titles."""
