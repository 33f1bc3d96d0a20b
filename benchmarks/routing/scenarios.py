"""What is measured: who talks, about what, on how many servers, and whether one of them leaves."""

from __future__ import annotations

import random
from collections.abc import Mapping

import attrs

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYSTEM_WORDS = 60
_TURN_WORDS = 12

#: users of the hot group for each user of another group
HOT = 10


@attrs.frozen
class Scenario:
    """One situation.

    Attributes:
        name: how it is called on the command line.
        groups: groups of users; the users of a group share a system prompt.
        hot: whether the first group has `HOT` times the users of each other group.
        leaves: whether the last server breaks all connections after a third of the turns, and is back, with an empty
            cache, after two thirds.
        pause: seconds that a user waits between an answer and the next turn.
    """

    name: str
    groups: int = 6
    hot: bool = False
    leaves: bool = False
    pause: float = 0.0

    def users(self, least: int) -> int:
        """Return how many users talk: at least so many, and in the hot scenario whole rounds of `group_of`."""
        size = self._round
        return -(-least // size) * size if self.hot else least

    def group_of(self, user: int) -> int:
        """Return the group of a user; users are numbered from 0."""
        if not self.hot:
            return user % self.groups
        # of each round of 15 users (with 6 groups) the first 10 are hot
        return max(user % self._round - HOT + 1, 0)

    @property
    def _round(self) -> int:
        return HOT + self.groups - 1


SCENARIOS: Mapping[str, Scenario] = {
    each.name: each
    for each in (Scenario("equal"), Scenario("hot", hot=True), Scenario("leaves", leaves=True, pause=3.0))
}


class Talk:
    """What one user says: the same for the same seed and user, whichever server answers.

    Args:
        seed: of the whole run.
        user: from 0.
        group: whose system prompt the user has.
    """

    def __init__(self, seed: int, user: int, group: int) -> None:
        self._random = random.Random(f"{seed} user {user}")
        system = words(random.Random(f"{seed} group {group}"), _SYSTEM_WORDS)
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}]

    def ask(self) -> None:
        """Add the user's next message."""
        self.messages.append({"role": "user", "content": words(self._random, _TURN_WORDS)})

    def hear(self, text: str) -> None:
        """Add the answer; a request that failed has none, and the conversation goes on without it."""
        self.messages.append({"role": "assistant", "content": text or "."})


def words(source: random.Random, count: int) -> str:
    """Return so many made-up words of two to seven letters."""
    return " ".join("".join(source.choices(_LETTERS, k=source.randint(2, 7))) for _ in range(count))
