"""Finds out whether the users and teams of callers exist, whom others name: by a token, or at a sign-in."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.client_address import client_of
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.identification.directory import Directory
from twisted_vllm.identification.waiting_places import WaitingPlaces
from twisted_vllm.ratelimit.allowance import USER

#: users that are being made
MOST_NEW_USERS = 64
#: looks into the database that changes may overtake
_MOST_LOOKS = 3


class CallerLookup:
    """Looks into the database, and tells `NamedCallers`."""

    _log = Logger()

    def __init__(self, callers: NamedCallers, directory: Directory) -> None:
        """Make it.

        Args:
            callers: remembers what was found.
            directory: the users and teams.
        """
        self.callers = callers
        self._directory = directory
        self._new_users = 0
        self._places = WaitingPlaces()

    def find_out(self, caller: TokenCaller, address: str) -> Deferred[None] | None:
        """Begin to find out whether the user and the teams of a caller exist, who is about to be refused.

        Args:
            caller: the caller.
            address: the client's address.

        Returns:
            A Deferred that fires, and never fails, afterwards; None if too many wait.
        """
        client = client_of(address)
        if not self._places.take(client):
            return None
        return self.look_up(caller, makes_user=False).addBoth(self._found_out, client)

    def _found_out(self, result: object, client: str | bytes) -> None:
        self._places.leave(client)
        # the database logs its own failures
        if isinstance(result, Failure) and not result.check(StoreUnavailable):
            self._log.failure("The user and teams of a caller could not be looked up", result)

    @inlineCallbacks
    def look_up(self, caller: TokenCaller, *, makes_user: bool) -> Generator[Deferred[Any], Any, None]:
        """Find out whether the user and the teams of a caller exist.

        Args:
            caller: the caller.
            makes_user: whether its user is made if there is none.

        Raises:
            StoreUnavailable: the database does not answer, or is too busy.
        """
        for _ in range(_MOST_LOOKS):
            names = self.callers.unknown_names(caller, makes_user=makes_user)
            if not names:
                return
            changes = self._directory.changes
            found: dict[tuple[str, str], bool] = yield self._directory.look_up(names)
            if makes_user and found.get((USER, caller.user_id or "")) is False:
                yield self._make_user(caller)
                continue
            if changes == self._directory.changes:
                for (kind, name), exists in found.items():
                    self.callers.set_existence(kind, name, exists)
                return
        raise StoreUnavailable("The user and team of this token change too fast to be looked up. Try again.")

    @inlineCallbacks
    def _make_user(self, caller: TokenCaller) -> Generator[Deferred[Any], Any, None]:
        if self._new_users >= MOST_NEW_USERS:
            raise StoreUnavailable("Too many new users are being made. Try again.", retry_after=1)
        self._new_users += 1
        try:
            yield self._directory.make_user(caller)
        finally:
            self._new_users -= 1
