"""``docs/routes.md``: vLLM's routes, and what the gateway knows of each."""

from __future__ import annotations

from docs.site.reference.markdown_table import WRITTEN, code, codes, table
from twisted_vllm.api_routes import ROUTES, ModelPlace, PrefixCache, Repeat, RouteClass, UsageFormat, VllmRoute
from twisted_vllm.mounts import is_at_root

_HEAD = f"""\
# vLLM's routes

{WRITTEN.format(source="twisted_vllm/api_routes.py")}

Every route of vLLM 0.32 that the gateway knows, by the class that decides [who may call it](routing.md#route-classes).
All are below `/vllm`, as in `/vllm/v1/chat/completions`; where *at the root* says yes, also at the gateway's root and at the [paths of other clients](routing.md#paths).
A path that is not here is privileged. The gateway's own routes are in [Admin API](admin-api.md).
"""

_COLUMNS = """\
## The columns

| column | |
| --- | --- |
| methods | those that vLLM serves |
| at the root | also without `/vllm` |
| without `/v1` | also at this shorter path, unless `passthrough.path_aliases` is off |
| model | where a request names its model |
| usage | the form in which an answer reports its tokens; without one, nothing is counted |
| sent again | whether a request that a server may have begun to process goes [to another one](failover.md#retries) |
| cache salt | whether vLLM's prefix cache is used, and whether [`cache_isolation`](keys.md#make-a-key) works there |
| also | other things that are special |
"""

_CLASSES = {
    RouteClass.INFERENCE: (
        "Inference",
        "Every valid key may call these, unless the settings or the key say otherwise.",
    ),
    RouteClass.READ_ONLY: ("Read-only", "They report the state of a server. Every valid key may call them."),
    RouteClass.PRIVILEGED: (
        "Privileged",
        "They change a server for everybody. The master key may call them, and keys to which they were opened.",
    ),
}
_MODEL = {
    ModelPlace.NONE: "",
    ModelPlace.BODY: "body",
    ModelPlace.HEADER: "a header",
    ModelPlace.EVENT: "an event",
    ModelPlace.PERHAPS: "perhaps the body",
}
_REPEAT = {
    Repeat.NEVER: "no",
    Repeat.ELSEWHERE: "to another server",
    Repeat.READS: "yes",
    Repeat.COMPUTES: "yes",
}
_CACHE = {PrefixCache.UNUSED: "", PrefixCache.SALTED: "works", PrefixCache.SHARED: "no: closed to isolated keys"}


def _row(route: VllmRoute) -> dict[str, str]:
    special = [
        "may be stored" if route.stores else "",
        "takes audio" if route.audio_uploads else "",
        "acts as another route, by its body" if route.dispatches else "",
        "goes to all servers" if route.fan_out else "",
        "priority in the body" if route.priority_in_body else "",
    ]
    return {
        "path": code(route.path),
        "methods": codes(method.decode() for method in route.methods),
        "at the root": "yes" if is_at_root(route) else "",
        "without `/v1`": "yes" if route.alias else "",
        "model": _MODEL[route.model],
        "usage": "" if route.usage is UsageFormat.NONE else code(route.usage.value),
        "sent again": _REPEAT[route.repeat],
        "cache salt": _CACHE[route.prefix_cache],
        "also": "; ".join(filter(None, special)),
    }


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for route_class, (title, about) in _CLASSES.items():
        rows = [_row(route) for route in ROUTES if route.route_class is route_class]
        parts += [f"## {title}\n", f"{about}\n", table(rows)]
    return "\n".join([*parts, _COLUMNS])
