"""The metrics of all servers in one scrape."""

from __future__ import annotations

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import NoQuery
from twisted_vllm.admin.responses import send
from twisted_vllm.admin.routing import Routes
from twisted_vllm.upstreams.merged_metrics import CONTENT_TYPE

_PATH = "/metrics/upstreams"

routes = Routes()


@routes.get(_PATH, query=NoQuery, access=Access.NAMED, response=None, errors=(403,), media_types=("text/plain",))
async def upstream_metrics(call: AdminCall, _query: NoQuery) -> bytes:
    """Return the metrics of all vLLM servers in the text format of Prometheus, each with a `server` label.

    `vllm_passthrough_upstream_scrape_up` is 0 for a server whose metrics could not be read. They name servers and
    models: they are for administrators, and for keys whose `allowed_routes` hold `/metrics/upstreams`.
    """
    body = await call.context.metrics_of_servers()
    return send(call.request, 200, [(b"content-type", CONTENT_TYPE.encode("ascii"))], body)
