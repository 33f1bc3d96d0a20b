"""Moves one batch of the ledger's rows into the database, and sets aside what cannot go there."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from twisted.logger import Logger

from twisted_vllm.usage.interfaces import DatabaseUnavailable, IUsageStore, RowsRejected, SpendUpdate
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.lines import clean, encode_rows
from twisted_vllm.usage.spool.quarantine import quarantine
from twisted_vllm.usage.spool.queue import Batch
from twisted_vllm.usage.spool.spool import Spool


@attrs.frozen
class _Refused:
    """A row that the database does not take, and what it says about it."""

    row: UsageRow
    reason: str


class BatchWriter:
    """Writes batches; it belongs to one thread.

    Attributes:
        committed: how many rows the database took.
        aside: how many damaged lines and unfit rows were set aside.
        reachable: whether the database took the last batch.
    """

    _log = Logger()

    def __init__(self, spool: Spool, store: IUsageStore) -> None:
        """Prepare.

        Args:
            spool: in whose directory, and under whose name, things are set aside.
            store: where the rows go.
        """
        self.committed = self.aside = 0
        self.reachable = True
        self._is_aside_stuck = False
        self._spool = spool
        self._store = store

    def move(self, batch: Batch) -> list[SpendUpdate] | None:
        """Write a batch; return what it changed of the scopes' spending, or None where that cannot be done now.

        After None the same batch is to be moved again: it counts once, and what is unfit of it is set aside once.
        """
        refused: list[_Refused] = []
        try:
            spent = self._write(batch.rows, batch.own, refused)
        except DatabaseUnavailable as away:
            level = self._log.error if self.reachable else self._log.debug
            level("The database does not take the ledger's rows, they wait in the spool: {reason}", reason=str(away))
            self.reachable = False
            return None
        if not self.reachable:
            self.reachable = True
            self._log.info("The database takes the ledger's rows again")
        # not before: until the database has the others, all of them may be tried again
        if (batch.damaged or refused) and not self._set_aside(batch.damaged, refused):
            return None
        self.committed += len(batch.rows) - len(refused)
        return spent

    def _write(self, rows: Sequence[UsageRow], own: bool, refused: list[_Refused]) -> list[SpendUpdate]:
        """Write rows; what the database refuses for good is found by halves, so that it does not hold up the rest."""
        if not rows:
            return []
        try:
            return self._store.write(rows, own)
        except RowsRejected as error:
            if len(rows) == 1:
                return self._write_cleaned(rows[0], own, refused, str(error))
        half = len(rows) // 2
        return self._write(rows[:half], own, refused) + self._write(rows[half:], own, refused)

    def _write_cleaned(self, row: UsageRow, own: bool, refused: list[_Refused], reason: str) -> list[SpendUpdate]:
        try:
            return self._store.write([clean(row)], own)
        except RowsRejected:
            refused.append(_Refused(row, reason))
            return []

    def _set_aside(self, damaged: Sequence[bytes], refused: Sequence[_Refused]) -> bool:
        """Keep what cannot go to the database, and return whether that could be done."""
        lines = [*damaged, *(encode_rows([each.row])[:-1] for each in refused)]
        try:
            path = str(quarantine(self._spool.directory, self._spool.name, lines))
        except OSError as error:
            level = self._log.debug if self._is_aside_stuck else self._log.critical
            level("The ledger cannot set aside what is damaged or unfit: {reason}", reason=error.strerror)
            self._is_aside_stuck = True
            return False
        self._is_aside_stuck = False
        self.aside += len(lines)
        if damaged:
            self._log.critical(
                "Lines of the ledger's spool are damaged: {count}, kept in {path}", count=len(damaged), path=path
            )
        if refused:
            self._log.critical(
                "Rows of the ledger are refused by the database ({reason}): {count}, kept in {path}",
                count=len(refused),
                reason=refused[0].reason,
                path=path,
            )
        return True
