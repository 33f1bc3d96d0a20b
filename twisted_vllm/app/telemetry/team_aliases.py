"""The names of the teams that metrics show, read from the database when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.errors import GatewayError
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.transaction import Transaction

#: seconds after which all names are read again, because an administrator may have changed them
REFRESH = 300.0
#: names to know between two scrapes
MOST_NAMES = 10_000


class TeamAliases:
    """Knows the names of some teams. One question to the database runs at a time."""

    _log = Logger()

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        """Know no name yet.

        Args:
            database: has the teams.
            now: returns the time in seconds.
        """
        self._store = Store(database)
        self._now = now
        self._names: dict[str, str] = {}
        self._wanted: set[str] = set()
        self._asking: Deferred[Any] | None = None
        self._read_at = 0.0

    def name(self, team_id: str) -> str:
        """Return the name of a team; empty if it has none, or it is not known yet."""
        return self._names.get(team_id, "")

    def want(self, team_id: str) -> None:
        """Ask for the name of a team that was not seen before."""
        if team_id not in self._names:
            if len(self._names) >= MOST_NAMES:
                self._names.clear()
            self._wanted.add(team_id)
            self._ask()

    def keep_only(self, team_ids: Collection[str]) -> None:
        """Forget all other teams, and ask again for these once in a while."""
        self._names = {id: name for id, name in self._names.items() if id in team_ids}
        missing = {id for id in team_ids if id not in self._names}
        if self._now() - self._read_at >= REFRESH:
            missing = set(team_ids)
        self._wanted |= missing
        self._ask()

    def _ask(self) -> None:
        if self._asking is not None or not self._wanted:
            return
        ids, self._wanted = self._wanted, set()
        self._read_at = self._now()

        def work(transaction: Transaction) -> dict[str, str]:
            found = {team.team_id: team.team_alias or "" for team in transaction.teams.among("team_id", ids)}
            # a team id may be a label without a team
            return dict.fromkeys(ids, "") | found

        self._asking = self._store.read(work)
        self._asking.addCallbacks(self._names.update, self._failed).addErrback(self._broken)
        self._asking.addCallback(lambda _: self._done())

    def _failed(self, failure: Failure) -> None:
        """The database does not answer, which its own lines of the log say: the next scrape asks again."""
        failure.trap(GatewayError)

    def _broken(self, failure: Failure) -> None:
        self._log.failure("The names of teams could not be read for the metrics", failure)

    def _done(self) -> None:
        self._asking = None
        self._ask()
