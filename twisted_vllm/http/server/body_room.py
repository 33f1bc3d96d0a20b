"""The room of one request's body in memory: the request is not read while it waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.python.failure import Failure

from twisted_vllm.context import RequestContext
from twisted_vllm.errors import GatewayError, NoRoomForBody
from twisted_vllm.http.server.held_bodies import HeldBodies, Holding

#: a chunked body with more than it has room for asks for so many times what arrived
GROWTH = 8


class RoomRequest(Protocol):
    """The part of a request that its room uses."""

    context: RequestContext
    body_received: int
    body_complete: bool

    def pause_body(self, why: str) -> None:
        """Stop reading the body from the client."""

    def resume_body(self, why: str) -> None:
        """Resume reading, unless there is another reason to pause."""

    def body_arrived(self) -> None:
        """Pass on the received pieces of the body."""

    def forget_body(self) -> None:
        """Drop the body, its receivers and its room."""

    def processingFailed(self, reason: Failure) -> object:
        """Log an exception, and answer 500 without its details."""


def owner_of(context: RequestContext) -> str:
    """Return the id of the key to which a body belongs; empty in open mode, where nobody has a key or a share."""
    principal = context.principal
    return "" if principal is None or principal.kind == "anonymous" else principal.key_id or principal.kind


class BodyRoom:
    """Asks for the room of one body, and waits for it. It is the body's `Holder`."""

    __slots__ = ("_holding", "_most", "_proceed", "_refuse", "_request")

    def __init__(self, request: RoomRequest, refuse: Callable[[GatewayError], None], most: int | None) -> None:
        """Make it.

        Args:
            request: the request.
            refuse: called with the error if there is no room in time.
            most: the most bytes that the whole body may have, and needs room for; None if the room is not for the
                whole.
        """
        self._request = request
        self._refuse = refuse
        self._most = most
        self._holding: Holding | None = None
        self._proceed: Callable[[], None] | None = None

    @property
    def body_received(self) -> int:
        """Bytes of the body that arrived."""
        return self._request.body_received

    def ask(self, account: HeldBodies, size: int, proceed: Callable[[], None]) -> None:
        """Call `proceed` once there is room for `size` bytes; it may be at once."""
        try:
            self._holding = account.ask(self, owner_of(self._request.context), size)
        except NoRoomForBody as error:
            self.room_refused(error)
            return
        if self._holding.waiting:
            self._wait(proceed)
        else:
            proceed()

    def has_body(self) -> bool:
        """Return whether what arrived may be passed on; a chunked body first asks for more room."""
        holding, most, request = self._holding, self._most, self._request
        if self._proceed is not None:
            return False
        if holding is None or most is None:
            return True
        if request.body_complete:
            # keep room for exactly what came
            holding.complete()
        elif holding.size < request.body_received <= most:
            try:
                holding.grow(min(most, GROWTH * request.body_received))
            except NoRoomForBody as error:
                self.room_refused(error)
                return False
            if holding.waiting:
                self._wait(request.body_arrived)
                return False
        return True

    def _wait(self, proceed: Callable[[], None]) -> None:
        self._proceed = proceed
        self._request.pause_body("room")

    def stop_timing(self) -> None:
        """The gateway does not read the rest yet: how fast the body comes says nothing any more."""
        if self._holding is not None:
            self._holding.stop_timing()

    def give_back(self) -> None:
        """Give the room back, or stop waiting. Idempotent."""
        if self._proceed is not None:
            self._proceed = None
            self._request.resume_body("room")
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.release()

    # for the account

    def room_granted(self) -> None:
        """Go on: there is room now."""
        proceed, self._proceed = self._proceed, None
        if proceed is None:
            return
        self._request.resume_body("room")
        try:
            proceed()
        except Exception:
            self._request.processingFailed(Failure())

    def room_refused(self, error: GatewayError) -> None:
        """End: the wait was too long, or the body came too slowly."""
        self._request.forget_body()
        self._refuse(error)
