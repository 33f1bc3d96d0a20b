"""The key endpoints that show something."""

from __future__ import annotations

from typing import Any

from twisted.web.iweb import IRequest

from twisted_vllm.admin.authorize import token_of
from twisted_vllm.admin.key_schemas import InfoRequest
from twisted_vllm.admin.listing import parse_aliases, parse_list
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import KeyInfoQuery, parse_query
from twisted_vllm.admin.reports import report_key, report_keys
from twisted_vllm.admin.respond import read_object, read_query, send_json
from twisted_vllm.admin.schemas import parse
from twisted_vllm.errors import NotFound, RouteNotAllowed
from twisted_vllm.storage.repository import Page
from twisted_vllm.storage.transaction import Transaction


class KeyViews:
    """Shows virtual keys, one, several or a page of them."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def info(self, request: IRequest) -> bytes:
        """Answer ``GET /key/info``: any key for an administrator, itself for a virtual key."""
        gatekeeper = self._office.gatekeeper
        principal = gatekeeper.principal_of(request)
        asked = parse_query(read_query(request), KeyInfoQuery).key or None
        own = gatekeeper.own_token(request)
        token = own if asked is None else token_of(asked)
        if token is None:
            raise NotFound("The master key has no record. Name a key, or its hash: /key/info?key=…", param="key")
        if not principal.may_administer and token not in (own, gatekeeper.presented_token(request)):
            raise RouteNotAllowed("A virtual key may see its own information only; the master key sees every key's.")
        wanted = token if principal.may_administer else own
        now = self._office.now()

        def work(transaction: Transaction) -> dict[str, Any]:
            record = transaction.keys.get(wanted or "")
            if record is None:
                raise NotFound("No such key is known.", param="key")
            return report_key(transaction, record, now)

        return send_json(request, {"key": token if asked is None else asked, "info": await self._office.read(work)})

    async def info_of_several(self, request: IRequest) -> bytes:
        """Answer ``POST /v2/key/info``: those of the named keys that are known."""
        self._office.gatekeeper.administrator_of(request)
        asked = parse(read_object(request), InfoRequest, {})
        tokens = {token_of(key): key for key in asked.keys}
        now = self._office.now()
        reports = await self._office.read(
            lambda transaction: report_keys(transaction, transaction.keys.among("token", tokens), now)
        )
        if not reports:
            raise NotFound("None of these keys is known.", param="keys")
        by_token = {report["token"]: report for report in reports}
        return send_json(
            request,
            {
                "key": [key for token, key in tokens.items() if token in by_token],
                "info": [by_token[token] for token in tokens if token in by_token],
            },
        )

    async def list_keys(self, request: IRequest) -> bytes:
        """Answer ``GET /key/list``: a page of keys, as hashes or as whole records."""
        self._office.gatekeeper.administrator_of(request)
        asked = parse_list(read_query(request), token_of)
        now = self._office.now()

        def work(transaction: Transaction) -> dict[str, Any]:
            page = transaction.keys.page_of_status(asked.query, asked.status, now)
            if asked.full:
                return {"keys": report_keys(transaction, page.records, now), **around(page)}
            return {"keys": [record.token for record in page.records], **around(page)}

        return send_json(request, await self._office.read(work))

    async def list_aliases(self, request: IRequest) -> bytes:
        """Answer ``GET /key/aliases``: a page of aliases in their order, those alone that hold `search`."""
        self._office.gatekeeper.administrator_of(request)
        query = parse_aliases(read_query(request))
        page = await self._office.read(lambda transaction: transaction.keys.page_of_aliases(query))
        return send_json(
            request, {"aliases": [record.key_alias for record in page.records], **around(page), "size": query.size}
        )


def around(page: Page[Any]) -> dict[str, int]:
    """Return what stands around a page, as ``/key/list`` writes it."""
    return {
        "total_count": page.total_count,
        "current_page": page.current_page,
        "total_pages": page.total_pages,
    }
