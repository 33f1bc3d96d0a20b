"""Whose usage a caller may see: an administrator everybody's, a virtual key its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import attrs
import msgspec
from sqlalchemy import Connection
from twisted.web.iweb import IRequest

from twisted_vllm.admin.authorize import token_of
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.respond import send_json
from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import RouteNotAllowed
from twisted_vllm.storage.usage.queries.rows import key_id_of
from twisted_vllm.storage.usage.tables import KEY, TEAM, USER

_KEY_ID = re.compile("[0-9a-f]{32}")
_OWN = "A virtual key may see its own usage only; the master key sees everybody's."


@attrs.frozen
class Caller:
    """Who asks about usage.

    Attributes:
        principal: whom the request acts as.
        office: knows the master key.
    """

    principal: Principal
    office: AdminContext

    def find_key(self, connection: Connection, name: str) -> str | None:
        """Return the lasting id of the key that a caller names; None where there is no such key, ``""`` for the master.

        Args:
            connection: of a transaction that reads.
            name: a key, its hash or its lasting id.

        Raises:
            RouteNotAllowed: it is another key than the caller's own, and the caller no administrator.
        """
        if self.principal.may_administer and self.office.authenticator.is_master(name):
            return ""
        found = name if _KEY_ID.fullmatch(name) else key_id_of(connection, token_of(name))
        if not self.principal.may_administer and found != self.principal.key_id:
            raise RouteNotAllowed(_OWN)
        return found

    def narrowed(self, equals: Mapping[str, str]) -> dict[str, str]:
        """Return filters that show no more than the caller may see: its own key's usage.

        Raises:
            RouteNotAllowed: they ask for another user's or team's.
        """
        if self.principal.may_administer:
            return dict(equals)
        for name, own in ((USER, self.principal.user_id), (TEAM, self.principal.team_id)):
            if equals.get(name, own) != own:
                raise RouteNotAllowed(_OWN)
        return {**equals, KEY: self.principal.key_id}


def caller_of(office: AdminContext, request: IRequest) -> Caller:
    """Return who asks; a key that administers nothing sees its own usage.

    Raises:
        MissingApiKey, InvalidApiKey, ExpiredApiKey, BlockedApiKey, TooManyFailures: as the pass-through does.
    """
    return Caller(office.gatekeeper.principal_of(request), office)


async def answer(office: AdminContext, request: IRequest, work: Callable[[Connection], object]) -> bytes:
    """Answer with what work returns, which only reads; it is made into JSON in the database's thread as well."""
    body = await office.read(lambda transaction: msgspec.json.encode(work(transaction.connection)))
    return send_json(request, msgspec.Raw(body))
