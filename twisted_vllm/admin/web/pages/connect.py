"""What a client needs to use this gateway, ready to copy, with its address, its models and perhaps a new key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.snippets import CLIENTS, NO_MODEL, PLACEHOLDER, Target, client_named
from twisted_vllm.errors import GatewayError

pages = Pages()

#: models that the list shows, and characters of a key
_MOST_MODELS, _LONGEST_KEY = 500, 1_024

#: for how long a new key may work
_DURATIONS = (("30d", "30 days"), ("90d", "90 days"), ("365d", "a year"), ("", "for ever"))


@pages.get("/ui/connect", title="Connect", group="Use")
async def show(call: PageCall) -> bytes:
    """Show what is copied, with a placeholder for the key."""
    return await _show(call, call.query)


@pages.post("/ui/connect")
async def show_model(call: PageCall) -> bytes:
    """Show it for another model, with the key that was made: a key does not belong into an address."""
    form = await _form(call)
    return await _show(call, form, key=form.get("key", "")[:_LONGEST_KEY])


@pages.post("/ui/connect/key", needs="POST /key/generate")
async def make_key(call: PageCall) -> bytes:
    """Make a key, and show what is copied with it: it is shown now and never again."""
    form = await _form(call)
    wanted: dict[str, Any] = {name: form[name] for name in ("key_alias", "duration") if form.get(name)}
    if call.principal.user_id is not None:
        wanted["user_id"] = call.principal.user_id
    try:
        made = await call.post("/key/generate", wanted)
    except GatewayError as error:
        return await _show(call, form, error=error)
    return await _show(call, form, key=made["key"], made=True)


async def _form(call: PageCall) -> dict[str, str]:
    return {name: values[0].strip() for name, values in (await call.form()).items()}


async def _show(
    call: PageCall, chosen: Mapping[str, str], *, key: str = "", made: bool = False, error: GatewayError | None = None
) -> bytes:
    """Return the page.

    Args:
        call: the request.
        chosen: the client and the model, as they were sent.
        key: what stands in the texts; empty for a placeholder.
        made: whether the key is new.
        error: why there is none.
    """
    problem = ""
    try:
        models = [each["id"] for each in (await call.get("/v1/models"))["data"]]
    except GatewayError as refused:
        models, problem = [], refused.message
    model = chosen.get("model", "")
    if model not in models:
        model = models[0] if models else NO_MODEL
    return call.render(
        "connect.html",
        status=200 if error is None else error.status,
        clients=CLIENTS,
        chosen=client_named(chosen.get("client", "")),
        target=Target(base_of(call), key or PLACEHOLDER, model),
        address=address_of(call),
        models=models[:_MOST_MODELS],
        count=len(models),
        model_problem=problem,
        key=key,
        made=made,
        durations=_DURATIONS,
        form=chosen,
        problem="" if error is None else error.message,
        param="" if error is None else error.param or "",
    )


def address_of(call: PageCall) -> str:
    """Return the gateway's address as its clients see it: as it is configured, or as this browser does."""
    configured = call.context.settings_in_effect().console.url
    return (configured or call.origin) + call.console.url(call.request, "")


def base_of(call: PageCall) -> str:
    """Return where vLLM's routes begin for clients."""
    settings = call.context.settings_in_effect()
    return address_of(call) + ("" if settings.root_routes else "/vllm")
