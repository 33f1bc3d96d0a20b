"""Groups and rate-limits alerts: alike ones become one message, and each minute has a maximum.

Plain Python: every method gets the time in seconds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from twisted_vllm.observability.alerting.alerts import HIGH, LOW, MEDIUM, Alert

#: seconds in which alerts that are alike are collected before the first message
LINGER = 2.0

#: messages about the same that go out at once; further ones every `REPEAT` seconds
BURST = 4
REPEAT = 300.0

#: texts that a message shows; of more alerts the latest are shown
MOST_TEXTS = 10

#: the most topics; alerts about further ones are grouped together
MOST_ABOUT = 1_000

MINUTE = 60.0

_OTHERS = "others"
_ORDER = (LOW, MEDIUM, HIGH)


class Message(msgspec.Struct, frozen=True, gc=False):
    """What one message says.

    Attributes:
        kind: the kind of its alerts; empty if they are of several.
        level: the highest level of them.
        texts: what happened: of many alerts the latest.
        count: how many events it stands for.
        since: when the first of them was, in Unix seconds.
    """

    kind: str
    level: str
    texts: tuple[str, ...]
    count: int
    since: float


class _Topic:
    """Alerts that are alike: those that no message has told, and how many messages may go."""

    __slots__ = ("_allowed", "_allowed_at", "count", "level", "since", "texts")

    def __init__(self, now: float) -> None:
        self._allowed = float(BURST)
        self._allowed_at = now
        self.clear()

    def clear(self) -> None:
        """Start anew after a message."""
        self.count = 0
        self.level = LOW
        self.since = 0.0
        self.texts: deque[str] = deque(maxlen=MOST_TEXTS)

    def sent(self) -> None:
        """Note that a message goes."""
        self._allowed = max(self._allowed - 1.0, 0.0)
        self.clear()

    def is_due(self, now: float) -> bool:
        """Return whether a message may go."""
        return bool(self.count) and not 0 <= now - self.since < LINGER and self._refill(now) >= 1.0

    def is_idle(self, now: float) -> bool:
        """Return whether nothing is remembered that still counts."""
        return not self.count and self._refill(now) >= BURST

    def _refill(self, now: float) -> float:
        self._allowed = min(self._allowed + max(now - self._allowed_at, 0.0) / REPEAT, float(BURST))
        self._allowed_at = now
        return self._allowed


class AlertDigest:
    """Collects alerts and says which messages are due.

    A thing has four messages at once, such as down, up, down and up, and then one every five minutes. If a minute has
    had its messages, what is due goes together into one at the minute's end.
    """

    def __init__(self, most: int) -> None:
        """Start without alerts.

        Args:
            most: messages in a minute.
        """
        self._topics: dict[tuple[str, str], _Topic] = {}
        self._sent: deque[float] = deque()
        self.reconfigure(most)

    def reconfigure(self, most: int) -> None:
        """Send at most so many messages in a minute from now on."""
        self._most = most

    def __len__(self) -> int:
        """Return how many things are remembered."""
        return len(self._topics)

    @property
    def waiting(self) -> int:
        """How many events no message has told yet."""
        return sum(topic.count for topic in self._topics.values())

    def add(self, alert: Alert, now: float) -> None:
        """Take an alert."""
        about = alert.about
        if (alert.kind, about) not in self._topics and len(self._topics) >= MOST_ABOUT:
            about = _OTHERS
        topic = self._topics.get((alert.kind, about))
        if topic is None:
            topic = self._topics[alert.kind, about] = _Topic(now)
        if not topic.count:
            topic.since = now
        topic.count += alert.count
        topic.level = max(topic.level, alert.level, key=_ORDER.index)
        topic.texts.append(alert.text)

    def due(self, now: float, *, all_of_them: bool = False) -> list[Message]:
        """Return the messages to send now.

        Args:
            now: the time.
            all_of_them: whether nothing may wait any longer: the gateway stops.
        """
        due = {
            name: topic for name, topic in self._topics.items() if topic.count and (all_of_them or topic.is_due(now))
        }
        messages = []
        if due:
            while self._sent and not 0 <= now - self._sent[0] < MINUTE:
                self._sent.popleft()
            room = 1 if all_of_them else self._most - len(self._sent)
            if room > 0:
                alone = due if len(due) <= room else dict(list(due.items())[: room - 1])
                rest = {name: topic for name, topic in due.items() if name not in alone}
                messages = [_message(name[0], topic) for name, topic in alone.items()]
                if rest:
                    messages.append(_together(rest))
                for topic in due.values():
                    topic.sent()
                self._sent.extend([now] * len(messages))
        self._topics = {name: topic for name, topic in self._topics.items() if not topic.is_idle(now)}
        return messages


def _message(kind: str, topic: _Topic) -> Message:
    return Message(kind, topic.level, tuple(dict.fromkeys(topic.texts)), topic.count, topic.since)


def _together(topics: dict[tuple[str, str], _Topic]) -> Message:
    """Return one message about many things: how many events of each kind, and some of their texts."""
    kinds: Counter[str] = Counter()
    for (kind, _), topic in topics.items():
        kinds[kind] += topic.count
    texts: Sequence[str] = [topic.texts[-1] for topic in topics.values()]
    shown = dict.fromkeys(texts[:MOST_TEXTS])
    return Message(
        next(iter(kinds)) if len(kinds) == 1 else "",
        max((topic.level for topic in topics.values()), key=_ORDER.index),
        (", ".join(f"{kind}: {count}" for kind, count in kinds.most_common()), *shown),
        kinds.total(),
        min(topic.since for topic in topics.values()),
    )
