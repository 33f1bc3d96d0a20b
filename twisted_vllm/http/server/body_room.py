"""The room of one request's body in memory: the request is not read while it waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.python.failure import Failure

from twisted_vllm.context import RequestContext
from twisted_vllm.errors import GatewayError, NoRoomForBody
from twisted_vllm.http.server.held_bodies import HeldBodies, Holding


class RoomRequest(Protocol):
    """The part of a request that its room uses."""

    context: RequestContext
    body_received: int

    def pause_body(self) -> None:
        """Stop reading the body from the client."""

    def resume_body(self) -> None:
        """Resume reading."""

    def forget_body(self) -> None:
        """Drop the body, its receivers and its room."""

    def processingFailed(self, reason: Failure) -> object:
        """Log an exception, and answer 500 without its details."""


class BodyRoom:
    """Asks for the room of one body, and waits for it. It is the body's `Holder`."""

    __slots__ = ("_holding", "_proceed", "_refuse", "_request")

    def __init__(self, request: RoomRequest, refuse: Callable[[GatewayError], None]) -> None:
        """Make it for `request`; `refuse` is called with the error if there is no room in time."""
        self._request = request
        self._refuse = refuse
        self._holding: Holding | None = None
        self._proceed: Callable[[], None] | None = None

    @property
    def body_received(self) -> int:
        """Bytes of the body that arrived."""
        return self._request.body_received

    @property
    def size(self) -> int:
        """Bytes that the body may have."""
        return 0 if self._holding is None else self._holding.size

    def ask(self, account: HeldBodies, size: int, proceed: Callable[[], None]) -> None:
        """Call `proceed` once there is room for `size` bytes; it may be at once."""
        principal = self._request.context.principal
        # in open mode nobody has a key, and so nobody a share
        key = "" if principal is None or principal.kind == "anonymous" else principal.key_id or principal.kind
        try:
            self._holding = account.ask(self, key, size)
        except NoRoomForBody as error:
            self.room_refused(error)
        else:
            self._await(self._holding, proceed)

    def ask_for_more(self, size: int, proceed: Callable[[], None]) -> None:
        """Call `proceed` once there is room for `size` bytes in all."""
        holding = self._holding
        if holding is None:
            return
        try:
            holding.grow(size)
        except NoRoomForBody as error:
            self.room_refused(error)
        else:
            self._await(holding, proceed)

    def _await(self, holding: Holding, proceed: Callable[[], None]) -> None:
        if holding.waiting:
            self._proceed = proceed
            self._request.pause_body()
        else:
            proceed()

    def complete(self) -> None:
        """The whole body arrived: keep room for exactly what came."""
        if self._holding is not None:
            self._holding.complete()

    def stop_timing(self) -> None:
        """The gateway does not read the rest yet: how fast the body comes says nothing any more."""
        if self._holding is not None:
            self._holding.stop_timing()

    def give_back(self) -> None:
        """Give the room back, or stop waiting. Idempotent."""
        self._proceed = None
        holding, self._holding = self._holding, None
        if holding is not None:
            holding.release()

    # for the account

    def room_granted(self) -> None:
        """Go on: there is room now."""
        proceed, self._proceed = self._proceed, None
        if proceed is None:
            return
        self._request.resume_body()
        try:
            proceed()
        except Exception:
            self._request.processingFailed(Failure())

    def room_refused(self, error: GatewayError) -> None:
        """End: the wait was too long, or the body came too slowly."""
        self._request.forget_body()
        self._refuse(error)
