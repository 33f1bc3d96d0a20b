"""What the endpoints of the admin API share: who asks, the store, and the way to it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest

from twisted_vllm.admin.acts import AuditContext
from twisted_vllm.admin.authorize import AdminAuthenticator
from twisted_vllm.admin.respond import shielded
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.transaction import Transaction

T = TypeVar("T")


class AdminContext:
    """Where the endpoints turn.

    Attributes:
        authenticator: knows the master key.
        gatekeeper: finds who asks.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        gatekeeper: AdminAuthenticator,
        registry: Registry,
        clock: IReactorTime,
        now: Callable[[], datetime],
        randbytes: Callable[[int], bytes],
    ) -> None:
        self.authenticator = authenticator
        self.gatekeeper = gatekeeper
        self.randbytes = randbytes
        self._registry = registry
        self._clock = clock
        self._now = now

    def now(self) -> datetime:
        """Return the present moment, in UTC."""
        return self._now().astimezone(UTC)

    def act(self, request: IRequest, action: str) -> AuditContext:
        """Return who does what by a request.

        Raises:
            RouteNotAllowed: it is not an administrator.
        """
        principal = self.gatekeeper.administrator_of(request)
        request_id: bytes = getattr(request, "request_id", b"")
        return AuditContext(
            action=action,
            actor=principal.hash_prefix or principal.kind,
            actor_name=principal.name,
            unlimited=principal.is_administrator,
            now=self.now(),
            randbytes=self.randbytes,
            request_id=request_id.decode("latin-1")[:128],
            client=self.gatekeeper.client_of(request)[:64],
        )

    def read(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Do work that only reads, and wait for it no longer than makes sense."""
        return shielded(self._registry.read(work), self._clock)

    def change(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Make a change, and see it through, also when the client goes away."""
        return shielded(self._registry.change(work), self._clock)
