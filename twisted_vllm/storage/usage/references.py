"""Gives payers, targets and names their ids, and stores each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec
from sqlalchemy import Connection

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.storage.usage.accepted import Insert, insert_all
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, Values
from twisted_vllm.storage.usage.tables import (
    hash_id,
    name_id,
    usage_names,
    usage_payer_tags,
    usage_payers,
    usage_targets,
)
from twisted_vllm.usage.records import Payer, Target, payer_of, target_of

#: payers, and targets, whose ids are remembered, besides those of one batch, and the bytes of their JSON; callers
#: choose the names in it
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 20_000, 8_000_000
#: ids that are known to be stored, 80 bytes each
MAX_STORED = 200_000
#: names in the sums that are known to be stored
MAX_NAMES = 50_000

V = TypeVar("V", Payer, Target)

_json = msgspec.json.Encoder().encode
_astuple = msgspec.structs.astuple

_insert_payers = BulkInsert(usage_payers, "ON CONFLICT DO NOTHING")
_insert_payer_tags = BulkInsert(usage_payer_tags, "ON CONFLICT DO NOTHING")
_insert_targets = BulkInsert(usage_targets, "ON CONFLICT DO NOTHING")
_insert_names = BulkInsert(usage_names, "ON CONFLICT DO NOTHING")


class _ReferenceIds(dict[bytes, int], Generic[V]):
    """The ids of payers or targets by their JSON, as far as they are remembered.

    Attributes:
        size: the bytes of their JSON.
    """

    def __init__(self, decode: Callable[[bytes], V]) -> None:
        super().__init__()
        self.size = 0
        self._decode: Callable[[bytes], V] = decode
        #: those that are stored, or will be with this transaction, and of these the new ones
        self._stored: set[int] = set()
        self._new: dict[int, bytes] = {}
        #: those that were taken last
        self._taken: dict[int, bytes] = {}

    def __missing__(self, text: bytes) -> int:
        id = self[text] = hash_id(text)
        self.size += len(text)
        if id not in self._stored:
            self._new[id] = text
        return id

    @property
    def has_new(self) -> bool:
        return bool(self._new)

    def take_new(self) -> list[tuple[int, V]]:
        """Return those that may not be stored yet, sorted, so that all processes lock in the same order."""
        found = [(id, self._decode(text)) for id, text in sorted(self._new.items())]
        self._stored.update(self._new)
        self._taken, self._new = self._new, {}
        return found

    def again(self) -> None:
        self._new = self._taken | self._new

    def trim(self) -> None:
        if len(self) > MAX_REMEMBERED or self.size > MAX_REMEMBERED_BYTES:
            self.clear()
            self.size = 0
        if len(self._stored) > MAX_STORED:
            self._stored.clear()

    def forget(self) -> None:
        self.clear()
        self.size = 0
        self._stored.clear()
        self._new.clear()
        self._taken = {}


class References:
    """The ids that the rows and sums refer to. Call `forget` when a transaction fails and for a new connection."""

    def __init__(self) -> None:
        self.payers: _ReferenceIds[Payer] = _ReferenceIds(payer_of)
        self.targets: _ReferenceIds[Target] = _ReferenceIds(target_of)
        self._names: BoundedCache[int, None] = BoundedCache(MAX_NAMES, 0)

    @property
    def has_new(self) -> bool:
        """Whether `write` has anything to store."""
        return self.payers.has_new or self.targets.has_new

    def trim(self) -> None:
        """Bound the memory; for the beginning of a transaction."""
        self.payers.trim()
        self.targets.trim()

    def forget(self) -> None:
        """Assume that nothing is stored."""
        self.payers.forget()
        self.targets.forget()
        self._names.clear()

    def write(self, connection: Connection) -> None:
        """Store the payers and targets that are new since the last call.

        Raises:
            SQLAlchemyError, UnicodeError: as `BulkInsert.run`.
        """
        payers, targets = self.payers.take_new(), self.targets.take_new()
        _insert_payers.run(connection, [_payer_values(id, payer) for id, payer in payers])
        _insert_payer_tags.run(connection, sorted((tag, id) for id, payer in payers for tag in set(payer.tags)))
        _insert_targets.run(connection, [_target_values(id, target) for id, target in targets])

    def again(self) -> None:
        """Have the next `write` store what the last one did, whose transaction was rolled back."""
        self.payers.again()
        self.targets.again()

    def write_names(self, connection: Connection, names: Iterable[str], insert: Insert = insert_all) -> None:
        """Store names of the sums that are not known to be stored.

        Raises:
            SQLAlchemyError, UnicodeError: as `BulkInsert.run`.
        """
        new = {id: name for name in names if (id := name_id(name)) and id not in self._names}
        insert(_insert_names, connection, sorted(new.items()))
        for id in new:
            self._names.keep(id, None, 0)


def _payer_values(id: int, payer: Payer) -> Values:
    *texts, tags, organization_id = _astuple(payer)
    return (id, *texts, _json(tags).decode(), organization_id)


def _target_values(id: int, target: Target) -> Values:
    *texts, prices = _astuple(target)
    return (id, *texts, _json(dict(prices)).decode())
