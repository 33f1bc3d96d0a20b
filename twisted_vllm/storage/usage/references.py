"""The numbers by which the ledger's rows refer to who pays and what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

import msgspec
from sqlalchemy import Connection

from twisted_vllm.storage.usage.bulk_insert import BulkInsert, Values
from twisted_vllm.storage.usage.tables import usage_payer_tags, usage_payers, usage_targets
from twisted_vllm.usage.records import Payer, Target, payer_of, target_of

V = TypeVar("V", Payer, Target)

#: how many of a kind are remembered to be in the database, at most but for one batch
MOST_KNOWN = 20_000

_json = msgspec.json.Encoder().encode

_payers = BulkInsert(usage_payers, "ON CONFLICT DO NOTHING")
_payer_tags = BulkInsert(usage_payer_tags, "ON CONFLICT DO NOTHING")
_targets = BulkInsert(usage_targets, "ON CONFLICT DO NOTHING")


def number_of(text: bytes) -> int:
    """Return a value's number, 63 bits of a hash of what it says: nobody has to ask for it."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


class _Numbers(Generic[V]):
    """Numbers of values that the database has, or that are written with this transaction."""

    def __init__(self, decode: Callable[[bytes], V]) -> None:
        self._decode: Callable[[bytes], V] = decode
        self._known: dict[bytes, tuple[int, V]] = {}
        self._new: dict[int, V] = {}

    def of(self, references: Sequence[msgspec.Raw]) -> tuple[list[int], dict[int, V]]:
        """Return the number for each, and what has these numbers."""
        # very many share theirs, and it cannot be hashed
        whose = list(map(id, references))
        shared = dict(zip(whose, references, strict=True))
        found = {which: self._numbered(bytes(text)) for which, text in shared.items()}
        if len(found) == 1:
            [(number, value)] = found.values()
            return [number] * len(references), {number: value}
        return [found[which][0] for which in whose], dict(found.values())

    def _numbered(self, text: bytes) -> tuple[int, V]:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = number_of(text), self._decode(text)
            self._new[found[0]] = found[1]
        return found

    def write(self, insert: Callable[[dict[int, V]], None]) -> None:
        if self._new:
            # sorted: every process takes the locks in this order
            insert(dict(sorted(self._new.items())))
            self._new.clear()

    def bound(self) -> None:
        if len(self._known) > MOST_KNOWN:
            self._known.clear()

    def forget(self) -> None:
        self._known.clear()
        self._new.clear()


class Numbers:
    """What is known to be in the database. It must `forget` when a transaction fails and with its connection.

    Attributes:
        payers: gives payers numbers.
        targets: gives targets numbers.
    """

    def __init__(self) -> None:
        self.payers: _Numbers[Payer] = _Numbers(payer_of)
        self.targets: _Numbers[Target] = _Numbers(target_of)

    def bound(self) -> None:
        """Forget what is too much; for the beginning of a transaction."""
        self.payers.bound()
        self.targets.bound()

    def forget(self) -> None:
        """Forget everything."""
        self.payers.forget()
        self.targets.forget()

    def write(self, connection: Connection) -> None:
        """Write what was numbered since the last time and may not be in the database yet.

        Raises:
            SQLAlchemyError, UnicodeError: as `BulkInsert.run`.
        """

        def insert_payers(new: dict[int, Payer]) -> None:
            _payers.run(connection, [_payer_values(number, payer) for number, payer in new.items()])
            _payer_tags.run(connection, sorted(_tags(new.items())))

        def insert_targets(new: dict[int, Target]) -> None:
            _targets.run(connection, [_target_values(number, target) for number, target in new.items()])

        self.payers.write(insert_payers)
        self.targets.write(insert_targets)


def _tags(payers: Iterable[tuple[int, Payer]]) -> Iterable[tuple[str, int]]:
    return ((tag, number) for number, payer in payers for tag in dict.fromkeys(payer.tags))


def _payer_values(number: int, payer: Payer) -> Values:
    *texts, tags = msgspec.structs.astuple(payer)
    return (number, *texts, _json(tags).decode())


def _target_values(number: int, target: Target) -> Values:
    *texts, prices = msgspec.structs.astuple(target)
    return (number, *texts, _json(dict(prices)).decode())
