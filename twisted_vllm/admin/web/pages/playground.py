"""The playground: chat with a model as oneself, or as one of one's keys.

The script of the page sends each question through the data path, with a ticket: what is allowed, limited and counted
there is what the key is allowed, limited and counted.
"""

from __future__ import annotations

from typing import Any

from twisted_vllm.admin.responses import send_json
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.errors import GatewayError, NotFound

pages = Pages()

#: keys that the list shows; a search finds the others
_MOST_KEYS = 50

#: the route that knows what an answer cost
REQUEST = "/usage/requests/<string:request_id>"


@pages.get("/ui/playground", title="Playground", group="Use")
async def show(call: PageCall) -> bytes:
    """Show the form and the conversation, which only the page itself keeps."""
    chosen, search = call.query.get("key", ""), call.query.get("key_search", "").strip()[:200]
    keys, more = await own_keys(call, search)
    if chosen and all(each["token"] != chosen for each in keys):
        keys += await _one_key(call, chosen)
    return call.render(
        "playground.html",
        keys=keys,
        more=more,
        chosen=chosen,
        search=search,
        model=call.query.get("model", ""),
        is_open=call.context.authenticator.is_open,
    )


@pages.get("/ui/playground/answer", needs=f"GET {REQUEST}")
async def answer(call: PageCall) -> bytes:
    """Return what an answer cost, for the script. A row takes a moment to come to the ledger: null until then."""
    request_id = call.query.get("request_id", "")
    if not request_id:
        return send_json(call.request, None)
    try:
        found = await call.get(REQUEST, {"request_id": request_id})
    except NotFound:
        return send_json(call.request, None)
    names = ("spend", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "estimated")
    return send_json(call.request, {name: found[name] for name in names})


async def own_keys(call: PageCall, search: str = "") -> tuple[list[dict[str, Any]], bool]:
    """Return keys that the caller may act as, and whether there are more.

    Administrators may act as every key, others as those of their user and as the one that they signed in with.
    """
    principal, session = call.principal, call.session
    query: dict[str, Any] = {
        "return_full_object": "true",
        "size": str(_MOST_KEYS),
        "search": search or None,
        "status": "active",
    }
    if not principal.may_administer:
        if principal.user_id is None:
            return [], False
        query["user_id"] = principal.user_id
    try:
        found = await call.get("/key/list", **query)
    except GatewayError:
        # a key that may not list keys acts as itself
        return [], False
    own = [
        each
        for each in found["keys"]
        if principal.may_administer
        or each["user_id"] == principal.user_id
        or (session and each["token"] == session.token)
    ]
    return [_named(each) for each in own], found["total_count"] > len(found["keys"])


async def _one_key(call: PageCall, token: str) -> list[dict[str, Any]]:
    """Return a key that a link names; none if the caller may not see it, or act as it."""
    try:
        found = (await call.get("/key/info", key=token))["info"]
    except GatewayError:
        return []
    is_own = call.principal.user_id is not None and found["user_id"] == call.principal.user_id
    return [_named(found)] if is_own or call.principal.may_administer else []


def _named(key: dict[str, Any]) -> dict[str, Any]:
    owner = f", of {key['user_id']}" if key["user_id"] else ""
    return {"token": key["token"], "name": f"{key['key_alias'] or key['key_name']}{owner}"}
