"""Questions about requests that nobody sent, and what would become of them: plain values."""

from __future__ import annotations

from typing import Any

import msgspec

from twisted_vllm.api_routes import BodyFields
from twisted_vllm.errors import GatewayError

#: methods whose requests have no body
WITHOUT_BODY = (b"GET", b"HEAD", b"OPTIONS")


class Question(msgspec.Struct, frozen=True):
    """A request that nobody sent.

    Attributes:
        method: its method; empty for the route's usual one.
        path: its path, as the gateway's clients write it.
        model: the model that its body names; empty if it names none.
        user: the end user that its body names; empty if it names none.
        max_tokens: the tokens that it may generate; None leaves that out.
    """

    method: bytes
    path: str
    model: str = ""
    user: str = ""
    max_tokens: int | None = None

    def body_for(self, fields: BodyFields) -> bytes:
        """Return the smallest body of such a request, for a route with these fields."""
        if self.method in WITHOUT_BODY:
            return b""
        found: dict[str, Any] = {}
        if self.model:
            found["model"] = self.model
        if self.user:
            found["user"] = self.user
        if self.max_tokens is not None and fields.limits:
            limit = {fields.limits[0]: self.max_tokens}
            found.update({fields.inside: limit} if fields.inside else limit)
        return msgspec.json.encode(found)


class Check(msgspec.Struct, frozen=True):
    """One check of a request.

    Attributes:
        check: its name: ``key``, ``route``, ``model``, ``fields``, ``end_user``, ``limits`` or ``servers``.
        passed: whether it passes; None if that is not known without sending it.
        why: the reason, in words.
        opens: what would let it pass; empty if it does.
        error: the error with which it is refused; None if it is not.
        level: whose limits were checked; empty for other checks.
    """

    check: str
    passed: bool | None
    why: str
    opens: str = ""
    error: GatewayError | None = None
    level: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What would become of a request.

    Attributes:
        checks: what was checked, in the order in which the gateway checks it.
        route: vLLM's path of the route; empty if it is none of vLLM's.
        method: the method that was assumed.
        model: the model's name in limits and the ledger; empty if it uses none.
        fallback: the model that would be asked in its place; empty if none would.
    """

    checks: tuple[Check, ...]
    route: str = ""
    method: str = ""
    model: str = ""
    fallback: str = ""

    @property
    def allowed(self) -> bool:
        """Whether no check fails."""
        return all(each.passed is not False for each in self.checks)

    @property
    def refusal(self) -> GatewayError | None:
        """The error that its client would get."""
        return next((each.error for each in self.checks if each.passed is False), None)
