"""Rows of the ledger as a year of requests leaves them: in the order of time, over many keys and end users."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate

import attrs
from msgspec import Raw

from benchmarks.growth.population import COMPLETION_PRICE, MODELS, PROMPT_PRICE, Population
from twisted_vllm.usage.records import UsageRow, refer

UNIFORM, ZIPF = "uniform", "zipf"
SPREADS = (UNIFORM, ZIPF)

#: the exponent of Zipf's law: the first of 100,000 keys sends a twelfth of the requests
_EXPONENT = 1.0
#: shares of the requests
_FAILED, _CLIENT_ID, _CLIENT_TAG = 0.02, 0.1, 0.02
#: names of the tags that clients give requests
_CLIENT_TAGS = 200
_SECOND = 1_000_000
MONTH_SECONDS = 365 * 86_400 / 12


@attrs.frozen
class Spread:
    """How requests spread over keys and end users.

    Attributes:
        keys: `UNIFORM` or `ZIPF`.
        end_users: likewise.
        named: the share of the requests that name an end user.
    """

    keys: str = UNIFORM
    end_users: str = UNIFORM
    named: float = 0.5


class Chooser:
    """Chooses numbers below a limit.

    Args:
        count: the limit.
        spread: `UNIFORM` or `ZIPF`.
        chance: the source of randomness.
    """

    def __init__(self, count: int, spread: str, chance: random.Random) -> None:
        self._numbers = range(count)
        self._chance = chance
        self._weights: list[float] | None = None
        if spread == ZIPF:
            self._weights = list(accumulate(1 / (number + 1) ** _EXPONENT for number in self._numbers))

    def choose(self, count: int) -> Sequence[int]:
        """Return so many numbers."""
        return self._chance.choices(self._numbers, cum_weights=self._weights, k=count)


class Traffic:
    """Makes rows.

    Args:
        population: whose requests they are.
        spread: how they spread.
        seed: rows of the same seed are the same.
    """

    def __init__(self, population: Population, spread: Spread, seed: int = 1) -> None:
        self._population = population
        self._chance = random.Random(seed)
        size = population.size
        self._keys = Chooser(size.keys, spread.keys, self._chance)
        self._end_users = Chooser(size.end_users, spread.end_users, self._chance) if size.end_users else None
        self._named = spread.named
        self._models = Chooser(len(MODELS), ZIPF, self._chance)
        self._targets = [refer(population.target(model)) for model in MODELS]
        self._payers: dict[int, Raw] = {}

    def rows(self, start: float, end: float, count: int) -> list[UsageRow]:
        """Return rows that began between two moments in Unix seconds, evenly, in the order of time."""
        chance, named, targets = self._chance, self._named, self._targets
        step = (end - start) / max(count, 1)
        keys, models = self._keys.choose(count), self._models.choose(count)
        whom = self._end_users.choose(count) if self._end_users is not None else [0] * count
        if self._end_users is None:
            named = 0.0
        rows = []
        for number, (key, model, end_user) in enumerate(zip(keys, models, whom, strict=True)):
            time = start + (number + chance.random()) * step
            luck = chance.random()
            failed = luck < _FAILED
            prompt, completion = 50 + chance.getrandbits(9), 0 if failed else 10 + chance.getrandbits(8)
            row_id = f"{int(time):08x}{chance.getrandbits(96):024x}"
            rows.append(
                UsageRow(
                    row_id,
                    int(time * _SECOND),
                    self._payer(key),
                    targets[model],
                    f"request-{row_id[:16]}" if luck > 1 - _CLIENT_ID else "",
                    self._population.end_user(end_user) if chance.random() < named else None,
                    None,
                    500 if failed else 200,
                    "completed",
                    "",
                    False,
                    prompt,
                    0,
                    completion,
                    0,
                    prompt + completion,
                    0,
                    False,
                    prompt * PROMPT_PRICE + completion * COMPLETION_PRICE,
                    20_000 + chance.getrandbits(16),
                    100_000 + chance.getrandbits(21),
                    900,
                    1_200,
                    request_tags=(f"client-tag-{key % _CLIENT_TAGS}",) if chance.random() < _CLIENT_TAG else (),
                )
            )
        return rows

    def batches(self, end: float, batch: int) -> Iterator[list[UsageRow]]:
        """Return all rows of the population's months before a moment in Unix seconds, so many at a time."""
        size = self._population.size
        start = end - size.months * MONTH_SECONDS
        for first in range(0, size.rows, batch):
            last = min(first + batch, size.rows)
            begin, finish = (start + (end - start) * number / size.rows for number in (first, last))
            yield self.rows(begin, finish, last - first)

    def _payer(self, key: int) -> Raw:
        payer = self._payers.get(key)
        if payer is None:
            payer = self._payers[key] = refer(self._population.payer(key))
        return payer
