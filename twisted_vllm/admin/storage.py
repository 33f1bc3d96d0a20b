"""What takes room in the database."""

from __future__ import annotations

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import NoQuery
from twisted_vllm.admin.routing import Routes
from twisted_vllm.storage.usage.room import Room, measure

routes = Routes()


@routes.get("/usage/storage", query=NoQuery, access=Access.READER, response=Room, errors=(504,))
async def storage(call: AdminCall, _query: NoQuery) -> msgspec.Raw:
    """Return what takes room: tables, indexes, partitions of the ledger's rows, logs and the spool; and what goes next.

    Bytes of large tables in SQLite are estimates.
    """
    settings = call.context.settings_in_effect()
    ledger = settings.ledger
    spool = settings.spool_directory if ledger.enabled else None
    return msgspec.Raw(
        await call.report(
            lambda transaction: msgspec.json.encode(measure(transaction.connection, ledger.usage_retention, spool))
        )
    )
