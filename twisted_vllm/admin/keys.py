"""The key endpoints that change something: what each takes, does and answers, in LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from twisted.web.iweb import IRequest

from twisted_vllm.admin import key_operations as operations
from twisted_vllm.admin.acts import AuditContext
from twisted_vllm.admin.allowances import dollars
from twisted_vllm.admin.key_schemas import (
    BulkRequest,
    GenerateRequest,
    ResetSpendRequest,
    parse_delete,
    parse_generate,
    parse_name,
    parse_regenerate,
    parse_service_account,
    parse_update,
)
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.reports import report_key, report_keys
from twisted_vllm.admin.respond import read_object, send_json
from twisted_vllm.admin.schemas import parse
from twisted_vllm.auth.authenticator import generate_key
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import GatewayError, InvalidRequest
from twisted_vllm.money import from_dollars
from twisted_vllm.storage.errors import KeyExists
from twisted_vllm.storage.transaction import Transaction


class KeyEndpoints:
    """Makes, changes, blocks, regenerates and deletes virtual keys."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def generate(self, request: IRequest) -> bytes:
        """Answer ``POST /key/generate``: a new key; it is shown this once."""
        act = self._office.act(request, "key/generate")
        return await self._make(request, act, parse_generate(read_object(request)), {})

    async def generate_service_account(self, request: IRequest) -> bytes:
        """Answer ``POST /key/service-account/generate``: a key that belongs to a team and to nobody in it."""
        act = self._office.act(request, "key/service-account/generate")
        asked = parse_service_account(read_object(request))
        extra = {"metadata": {"service_account_id": asked.key_alias, **(asked.metadata or {})}}
        return await self._make(request, act, asked, extra)

    async def _make(
        self, request: IRequest, act: AuditContext, asked: GenerateRequest, extra: Mapping[str, Any]
    ) -> bytes:
        key = self._new_key(asked.key, "key")
        values = asked.values(asked.__struct_fields__, act)
        record = operations.new_record(key, self._office.randbytes(16).hex(), {**values, **extra}, act)

        def work(transaction: Transaction) -> dict[str, Any]:
            operations.insert(transaction, act, record)
            return report_key(transaction, record, act.now)

        report = await self._office.change(work)
        return send_json(request, {**report, **_shown_once(record, key), "duration": asked.duration})

    def _new_key(self, custom: str | None, param: str) -> str:
        key = generate_key(self._office.randbytes) if custom is None else custom
        if self._office.authenticator.is_master(key):
            raise KeyExists(param)
        return key

    async def update(self, request: IRequest) -> bytes:
        """Answer ``POST /key/update``: what is absent stays, null clears."""
        act = self._office.act(request, "key/update")
        body = read_object(request)
        asked = parse_update(body)

        def work(transaction: Transaction) -> dict[str, Any]:
            return report_key(transaction, operations.update(transaction, act, asked, body), act.now)

        report = await self._office.change(work)
        return send_json(request, {**report, "key": asked.key or report["token"]})

    async def bulk_update(self, request: IRequest) -> bytes:
        """Answer ``POST /key/bulk_update``: each key for itself, and what became of each."""
        act = self._office.act(request, "key/bulk_update")
        asked = parse(read_object(request), BulkRequest, {})
        done, failed = await self._office.change(partial(_update_each, act, asked.keys))
        return send_json(
            request,
            {
                "total_requested": len(asked.keys),
                "successful_updates": [{"key": report["token"], "key_info": report} for report in done],
                "failed_updates": failed,
            },
        )

    async def block(self, request: IRequest) -> bytes:
        """Answer ``POST /key/block``: the key is refused from the next request on."""
        return await self._set_blocked(request, True)

    async def unblock(self, request: IRequest) -> bytes:
        """Answer ``POST /key/unblock``: the key works again."""
        return await self._set_blocked(request, False)

    async def _set_blocked(self, request: IRequest, blocked: bool) -> bytes:
        act = self._office.act(request, "key/block" if blocked else "key/unblock")
        asked = parse_name(read_object(request))

        def work(transaction: Transaction) -> dict[str, Any]:
            record = operations.find(transaction, asked.key, asked.key_alias)
            changed = operations.change(transaction, act, record, {"blocked": blocked})
            return report_key(transaction, changed, act.now)

        return send_json(request, await self._office.change(work))

    async def regenerate(self, request: IRequest, key: str | None = None) -> bytes:
        """Answer ``POST /key/regenerate`` and ``POST /key/KEY/regenerate``: another value, shown this once."""
        act = self._office.act(request, "key/regenerate")
        body = read_object(request)
        if key is not None:
            if body.get("key") not in (None, key):
                raise InvalidRequest("The path names another key than the body: name it once.", param="key")
            body["key"] = key
        asked = parse_regenerate(body)
        new = self._new_key(asked.new_key, "new_key")

        def work(transaction: Transaction) -> dict[str, Any]:
            record = operations.regenerate(transaction, act, asked, body, new)
            return {**report_key(transaction, record, act.now), **_shown_once(record, new)}

        return send_json(request, await self._office.change(work))

    async def reset_spend(self, request: IRequest, key: str) -> bytes:
        """Answer ``POST /key/KEY/reset_spend``: what the budget's present period has of it; the total stays."""
        act = self._office.act(request, "key/reset_spend")
        reset_to = from_dollars(parse(read_object(request), ResetSpendRequest, {}).reset_to)

        def work(transaction: Transaction) -> dict[str, Any]:
            record, before = operations.reset_spend(transaction, act, key, reset_to)
            report = report_key(transaction, record, act.now)
            return {
                "key_hash": record.token,
                "previous_spend": dollars(before),
                **{name: report[name] for name in ("spend", "total_spend", "max_budget", "budget_reset_at")},
            }

        return send_json(request, await self._office.change(work))

    async def delete(self, request: IRequest) -> bytes:
        """Answer ``POST /key/delete``: all that were named, or none where one of them is not known."""
        act = self._office.act(request, "key/delete")
        asked = parse_delete(read_object(request))
        deleted = await self._office.change(lambda transaction: operations.delete(transaction, act, asked))
        return send_json(request, {"deleted_keys": deleted})


def _shown_once(record: KeyRecord, key: str) -> dict[str, str]:
    return {"key": key, "token_id": record.token}


def _update_each(
    act: AuditContext, bodies: tuple[dict[str, Any], ...], transaction: Transaction
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    done: list[KeyRecord] = []
    failed: list[dict[str, Any]] = []
    for number, body in enumerate(bodies):
        try:
            done.append(operations.update(transaction, act, parse_update(body), body))
        except GatewayError as error:
            # every operation looks before it writes: one that was refused has changed nothing
            failed.append({"index": number, "key_info": None, "failed_reason": error.message})
    return report_keys(transaction, done, act.now), failed
