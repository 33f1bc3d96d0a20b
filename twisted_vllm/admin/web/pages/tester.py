"""The tester: may this key call this model on this route, and if not, why?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted_vllm.admin.access import Extent
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.errors import GatewayError

pages = Pages()

#: the routes that the form offers
ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank"),
    *("/v1/audio/transcriptions", "/v1/models", "/vllm/tokenize", "/vllm/metrics", "/vllm/sleep"),
)
#: keys and models that the form offers
_MOST_KEYS, _MOST_MODELS = 50, 200

_FIELDS = ("key", "model", "route", "method", "user", "max_tokens")

#: each check in words
CHECKS: Mapping[str, str] = {
    "key": "Key",
    "route": "Route",
    "model": "Model",
    "fields": "Fields of the body",
    "end_user": "End user",
    "limits": "Limits",
    "servers": "Servers",
}
LEVELS: Mapping[str, str] = {
    "key": "of the key",
    "user": "of its user",
    "team": "of its team",
    "member": "of the user in the team",
    "organization": "of its organization",
    "end_user": "of the end user",
    "model_budget": "for this model",
    "proxy": "of the gateway",
}


@pages.get("/ui/tester", needs="GET /key/may_call", title="May it call?", group="Access")
async def show(call: PageCall) -> bytes:
    """Show the form; with a key's hash and a model in the address, the answer too."""
    given = {name: call.query.get(name, "") for name in _FIELDS}
    if given["key"].startswith("sk-"):
        # a key in an address is in logs and histories: it is not used from there
        given["key"] = ""
    return await _answer(call, given, asked=bool(given["model"] or given["route"]))


@pages.post("/ui/tester", needs="GET /key/may_call")
async def ask(call: PageCall) -> bytes:
    """Answer the form."""
    form = await call.form()
    return await _answer(call, {name: form.get(name, [""])[0].strip() for name in _FIELDS}, asked=True)


async def _answer(call: PageCall, given: Mapping[str, str], *, asked: bool) -> bytes:
    verdict: dict[str, Any] | None = None
    problem, param, status = "", "", 200
    if asked:
        try:
            query: dict[str, Any] = {name: value for name, value in given.items() if value}
            verdict = await call.get("/key/may_call", **query)
        except GatewayError as error:
            problem, param, status = error.message, error.param or "", error.status
    # what was typed is shown again, but for a key
    shown = {**given, "key": "" if given["key"].startswith("sk-") else given["key"]}
    return call.render(
        "tester.html",
        status=status,
        given=shown,
        verdict=verdict,
        problem=problem,
        param=param,
        keys=await _keys(call),
        models=await _models(call),
        routes=ROUTES,
        checks=CHECKS,
        levels=LEVELS,
        sees_all=call.extent("GET /key/list") is Extent.ALL,
    )


async def _keys(call: PageCall) -> list[tuple[str, str]]:
    """Return the newest keys that the caller sees: hash and name."""
    found = await call.get("/key/list", size=_MOST_KEYS, return_full_object="true")
    return [(each["token"], each["key_alias"] or each["key_name"]) for each in found["keys"]]


async def _models(call: PageCall) -> list[str]:
    try:
        found = await call.get("/v1/models")
    except GatewayError:
        # the caller may not list models
        return []
    return [each["id"] for each in found["data"][:_MOST_MODELS]]
