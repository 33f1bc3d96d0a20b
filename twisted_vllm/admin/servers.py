"""The servers: how each is, and taking one out of service."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
import msgspec

from twisted_vllm.admin.context import AdminCall, AuditContext
from twisted_vllm.admin.fields import check_printable, redacted
from twisted_vllm.admin.models import Body, Json, Query, Response
from twisted_vllm.admin.routing import Routes
from twisted_vllm.config.drained_servers import MAX_DRAINED, MAX_REASON, MAX_URL
from twisted_vllm.errors import Conflict, InvalidRequest, NotFound
from twisted_vllm.storage.records import DrainedServerRecord
from twisted_vllm.storage.transaction import Transaction

if TYPE_CHECKING:
    # few gateways are asked about their servers
    from twisted_vllm.upstreams.server_report import ServerRow

_KIND = "server"
#: names of servers in a message
_MOST_NAMED = 20

_Name = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=2_000,
        description="The server's name, as in `server` of ``GET /server/list``, or its URL.",
    ),
]
_State = Literal["closed", "open", "half_open", "dead", "sleeping", "drained", "not_configured"]


class ServerQuery(Query, frozen=True, kw_only=True):
    """Which servers to show."""

    server: Annotated[str, msgspec.Meta(description="The name or URL of a server: only that one.")] = ""
    model: Annotated[str, msgspec.Meta(description="A model_name: only the servers of its entries.")] = ""


class DrainRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /server/drain``."""

    server: _Name
    reason: Annotated[
        str, msgspec.Meta(max_length=MAX_REASON, description="Why, for those who look at the server.")
    ] = ""

    def check(self) -> None:
        """Check the reason."""
        check_printable("reason", self.reason)


class UndrainRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /server/undrain``."""

    server: _Name
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON, description="Why, for the audit log.")] = ""

    def check(self) -> None:
        """Check the reason."""
        check_printable("reason", self.reason)


class DrainedReport(Response, kw_only=True):
    """Who drained a server, and why."""

    since: datetime
    by: Annotated[str, msgspec.Meta(description="The name of the key, or `master`.")]
    reason: str


class ServedModel(Response, kw_only=True):
    """An entry of the model list that names the server."""

    model_name: Annotated[
        str, msgspec.Meta(description="The name that callers use; empty for the default server, which has no entry.")
    ]
    model: Annotated[str, msgspec.Meta(description="The server's name of the model.")]
    model_id: str
    weight: int
    order: int
    fallbacks: Annotated[tuple[str, ...], msgspec.Meta(description="The models that are asked in its place.")]
    other_servers: Annotated[int, msgspec.Meta(description="The other servers of the model that get requests.")]


class ServerReport(Response, kw_only=True):
    """A server."""

    server: Annotated[str, msgspec.Meta(description="Its name, by which x-vllm-passthrough-server chooses it.")]
    address: Annotated[str, msgspec.Meta(description="Its URL, without credentials.")]
    configured: Annotated[
        bool, msgspec.Meta(description="Whether it is in the configuration. One that was drained stays so without.")
    ]
    state: Annotated[_State, msgspec.Meta(description="As in ``GET /health``; not_configured: see `configured`.")]
    reason: Annotated[str, msgspec.Meta(description="Why it is in this state; empty if it never was in another.")]
    since: Annotated[datetime, msgspec.Meta(description="Since when it is in this state.")]
    gets_requests: Annotated[bool, msgspec.Meta(description="Whether it gets new requests.")]
    drained: Annotated[DrainedReport | None, msgspec.Meta(description="Who drained it; null if nobody did.")]
    sleeping: Annotated[bool, msgspec.Meta(description="Whether vLLM's sleep mode is on.")]
    next_try: Annotated[
        datetime | None, msgspec.Meta(description="When it gets a request again at the earliest; null if it is well.")
    ]
    in_flight: Annotated[int, msgspec.Meta(description="The requests that this gateway has there.")]
    max_in_flight: Annotated[int | None, msgspec.Meta(description="The most of them; null without a limit.")]
    queued: Annotated[
        int, msgspec.Meta(description="Requests that wait in this gateway for it, or for others of its models.")
    ]
    latency_seconds: Annotated[
        float | None,
        msgspec.Meta(
            description="Until its answers begin: the average that follows slow answers at once. It is measured where "
            "several servers share a model; null elsewhere, and before the first answer."
        ),
    ]
    errors: Annotated[
        dict[str, int],
        msgspec.Meta(description="Requests that failed by its fault since the gateway started, by reason."),
    ]
    version: Annotated[
        str | None, msgspec.Meta(description="vLLM's version, as it said when it last came back; null if unknown.")
    ]
    running: Annotated[
        float | None,
        msgspec.Meta(description="Requests that run inside vLLM; null without passthrough.health.scrape_metrics."),
    ]
    waiting: Annotated[float | None, msgspec.Meta(description="Requests in vLLM's own queue; null likewise.")]
    kv_cache_usage: Annotated[
        float | None, msgspec.Meta(description="The used share of its KV cache, 0 to 1; null likewise.")
    ]
    prefix_cache_hit_ratio: Annotated[
        float | None,
        msgspec.Meta(
            description="The share of the prompts' tokens of the last minute that its prefix cache had, 0 to 1; null "
            "likewise, and while no prompt comes."
        ),
    ]
    models: Annotated[tuple[ServedModel, ...], msgspec.Meta(description="The entries of the model list that name it.")]
    served_models: Annotated[
        tuple[str, ...] | None,
        msgspec.Meta(description="The models that it lists itself, the first of them; null if it does not answer."),
    ]
    served_models_count: int


class ServerList(Response, kw_only=True):
    """All servers."""

    servers: tuple[ServerReport, ...]
    count: int


class DrainReport(Response, kw_only=True):
    """What became of a server."""

    server: ServerReport
    changed: Annotated[bool, msgspec.Meta(description="False if it was so already.")]
    warnings: Annotated[tuple[str, ...], msgspec.Meta(description="What this means for models without other servers.")]


routes = Routes()


@routes.get("/server/list", query=ServerQuery, response=ServerList)
async def list_servers(call: AdminCall, query: ServerQuery) -> Json:
    """Return how each server is, for all processes of the gateway together.

    It tells what requests and health checks found out. A server is asked for its models, at most once in 5 seconds.
    """
    rows = [
        row
        for row in await call.context.servers().rows()
        if query.server in ("", row.server, row.address)
        and (not query.model or any(each.model_name == query.model for each in row.entries))
    ]
    return {"servers": [report_server(row) for row in rows], "count": len(rows)}


@routes.post("/server/drain", body=DrainRequest, response=DrainReport, errors=(404, 409))
async def drain(call: AdminCall, body: DrainRequest) -> Json:
    """Take a server out of service: it gets no new requests. Those in flight end.

    It holds in all processes and in all gateways of the database, and over restarts, until it is undrained. What
    continues a stored response that only this server has still goes there, and so does what names the server.
    """
    url = _find(call, body.server)
    if len(url) > MAX_URL:
        raise InvalidRequest(f"The server's URL is over {MAX_URL} characters: it cannot be drained.", param="server")
    changed = await call.change(lambda transaction: drain_server(transaction, call.audit, url, body.reason))
    return await _answer(call, url, changed)


@routes.post("/server/undrain", body=UndrainRequest, response=DrainReport, errors=(404,))
async def undrain(call: AdminCall, body: UndrainRequest) -> Json:
    """Put a server into service again: from the next request on, if it is well."""
    url = _find(call, body.server)
    changed = await call.change(lambda transaction: undrain_server(transaction, call.audit, url, body.reason))
    return await _answer(call, url, changed)


def drain_server(transaction: Transaction, audit: AuditContext, url: str, reason: str) -> bool:
    """Drain a server; return whether it was not drained before. Another reason takes the place of the first.

    Raises:
        Conflict: too many are drained.
    """
    by = (audit.actor_name or audit.actor)[:255]
    before = transaction.drained_servers.get(url)
    if before is None:
        if transaction.drained_servers.count() >= MAX_DRAINED:
            raise Conflict(
                f"{MAX_DRAINED} servers are drained already, which is the most. Undrain those that are gone: "
                "GET /server/list shows them."
            )
        after = DrainedServerRecord(url, reason, audit.now, by)
        transaction.drained_servers.insert(after)
    else:
        after = attrs.evolve(before, reason=reason or before.reason)
        if after == before:
            return False
        transaction.drained_servers.replace(url, after)
    audit.record(transaction, _KIND, url[:255], before, after)
    return before is None


def undrain_server(transaction: Transaction, audit: AuditContext, url: str, reason: str) -> bool:
    """Undrain a server; return whether it was drained."""
    before = transaction.drained_servers.get(url)
    if before is None:
        return False
    transaction.drained_servers.delete([url])
    audit.record(transaction, _KIND, url[:255], before, {"reason": reason} if reason else None)
    return True


def report_server(row: ServerRow) -> Json:
    """Return a server as `ServerReport` describes it."""
    drained = row.drained
    return {
        "server": row.server,
        "address": row.address,
        "configured": row.configured,
        "state": row.state,
        "reason": row.reason,
        "since": _moment(row.since),
        "gets_requests": row.gets_requests,
        "drained": None
        if drained is None
        else {"since": _moment(drained.since), "by": drained.by, "reason": drained.reason},
        "sleeping": row.sleeping,
        "next_try": None if row.next_try is None else _moment(row.next_try),
        "in_flight": row.in_flight,
        "max_in_flight": row.max_in_flight,
        "queued": row.queued,
        "latency_seconds": row.latency,
        "errors": dict(row.errors),
        "version": row.version or None,
        "running": row.running,
        "waiting": row.waiting,
        "kv_cache_usage": row.kv_usage,
        "prefix_cache_hit_ratio": row.cache_hits,
        "models": [
            {
                "model_name": each.model_name,
                "model": each.model,
                "model_id": each.model_id,
                "weight": each.weight,
                "order": each.order,
                "fallbacks": each.fallbacks,
                "other_servers": each.others,
            }
            for each in row.entries
        ],
        "served_models": row.served,
        "served_models_count": row.served_count,
    }


def warnings_of(row: ServerRow) -> list[str]:
    """Return what a server that gets no requests means for the models that have no other one."""
    found = []
    for each in row.entries:
        if row.gets_requests or each.others:
            continue
        if not each.model_name:
            found.append("No other server serves models without an entry: their requests are refused with 503.")
        elif each.fallbacks:
            found.append(
                f"No other server of `{each.model_name}` gets requests: its fallbacks are asked in its place "
                f"({', '.join(each.fallbacks[:_MOST_NAMED])})."
            )
        else:
            found.append(
                f"No other server of `{each.model_name}` gets requests: its requests are refused with 503 until one "
                "does."
            )
    return list(dict.fromkeys(found))


async def _answer(call: AdminCall, url: str, changed: bool) -> Json:
    rows: Sequence[ServerRow] = await call.context.servers().rows(refresh=False)
    row = next((each for each in rows if each.address == url), None)
    if row is None:
        from twisted_vllm.upstreams.server_report import ServerRow

        # undrained, and not configured: nothing is known of it any more
        row = ServerRow(
            server=url, address=url, configured=False, state="not_configured", reason="", since=call.now.timestamp(),
            gets_requests=False, drained=None,
        )  # fmt: skip
    return {"server": report_server(row), "changed": changed, "warnings": warnings_of(row)}


def _find(call: AdminCall, text: str) -> str:
    servers = call.context.servers()
    found = servers.find(text)
    if found is None:
        names = servers.names
        there_are = f" There are: {', '.join(names[:_MOST_NAMED])}{', …' if len(names) > _MOST_NAMED else ''}."
        raise NotFound(f"No server is called `{redacted(text)}`.{there_are if names else ''}", param="server")
    return found


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(max(seconds, 0.0), UTC)
