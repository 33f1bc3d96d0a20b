"""The routes of the overview."""

from __future__ import annotations

from msgspec import Raw

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import NoQuery
from twisted_vllm.admin.overview.models import SpendOverview, SpendQuery, TrafficQuery
from twisted_vllm.admin.reports.scope import span_of
from twisted_vllm.admin.routing import Routes
from twisted_vllm.auth.roles import reads_everything
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.observability.problems.facts import ProblemsReport
from twisted_vllm.observability.traffic.report import TrafficReport
from twisted_vllm.storage.transaction import Transaction

#: seconds that the overview of everybody's spend is given again
_SHARED_SECONDS = 10.0

routes = Routes()


@routes.get("/gateway/traffic", query=TrafficQuery, response=TrafficReport, access=Access.READER)
async def traffic(call: AdminCall, query: TrafficQuery) -> Raw:
    """Return what passed of late: requests, tokens, errors by cause and times, as a time series and in sum.

    It is counted in memory, by all processes of the gateway on this machine, for a day: in steps of 5 seconds for an
    hour, else of a minute. `/usage/report` has longer periods.
    """
    start, seconds = 0.0, query.minutes * 60
    if query.since:
        span = span_of(query.since, "", ("since", ""))
        start, seconds = (span.start or 0) / 1e6, 0
        if start > call.now.timestamp():
            raise InvalidRequest("`since` must be in the past.", param="since")
    return Raw(await call.context.overview.traffic(seconds, start))


@routes.get("/gateway/problems", query=NoQuery, response=ProblemsReport, access=Access.READER)
async def problems(call: AdminCall, _query: NoQuery) -> Raw:
    """Return what is wrong now, in words: servers, budgets, database, ledger, certificates, deliveries, processes.

    It speaks for all processes of the gateway on this machine, by the same bounds as the alerts for Prometheus.
    """
    return Raw(await call.context.overview.problems())


@routes.get("/spend/overview", query=SpendQuery, response=SpendOverview, access=Access.ANY_KEY, errors=(504,))
async def spend(call: AdminCall, query: SpendQuery) -> Raw:
    """Return what was spent today and this month, by model, team and key, and the budgets that are used most.

    Administrators see everybody's, 10 seconds old at most. A virtual key sees that of all keys of its user, or its own
    if it has no user, and the budgets that are its own.
    """
    # Imported here: an idle gateway does without.
    from twisted_vllm.admin.overview.spend import Whose, encode, overview, own_budgets

    context = call.context
    whose = Whose.caller(call.principal, sees_all=reads_everything(call.principal))
    if whose.equals:

        def own(transaction: Transaction) -> bytes:
            budgets = own_budgets(transaction, call.principal, call.now)
            return encode(overview(transaction, whose, budgets, query.top, call.now))

        return Raw(await call.report(own))
    latest = context.latest_spend
    found = latest.get(query.top, context.clock.seconds())
    if found is None:
        budgets = await context.overview.budgets()
        found = await call.report(
            lambda transaction: encode(overview(transaction, whose, budgets, query.top, call.now))
        )
        latest.keep(query.top, context.clock.seconds() + _SHARED_SECONDS, found)
    return Raw(found)
