"""Models: how the console lists them, and changes those entries that were added at run time."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from twisted_vllm.admin.fields import Alias
from twisted_vllm.admin.models import Body, Json, described
from twisted_vllm.admin.web.forms import Form, Group
from twisted_vllm.admin.web.page import PageCall
from twisted_vllm.admin.web.records.noun import (
    ID,
    LINK,
    MOMENT,
    NUMBER,
    STATUS,
    Column,
    Fact,
    Noun,
    link_to,
)
from twisted_vllm.admin.web.templates import NOTHING
from twisted_vllm.config.providers import PROVIDER
from twisted_vllm.errors import NotFound

PATH = "/ui/models"

_PREFIX = f"{PROVIDER}/"
_Whole = Annotated[int, msgspec.Meta(ge=1)]
_Price = Annotated[float, msgspec.Meta(ge=0)]
#: fields of the form that stand in `model_info` of a list
_DESCRIBED = ("input_cost_per_token", "output_cost_per_token")


class ModelEntryFields(Body, frozen=True, kw_only=True):
    """The fields of an entry, which stand in `litellm_params` of the API but for the name."""

    model_name: Annotated[
        Alias,
        described("The name by which callers ask for the model. Entries with one name share its requests."),
    ]
    model: Annotated[str, described("The model's name at the server, as `GET /v1/models` of the server has it.")]
    api_base: Annotated[
        str | None,
        described("The server's address, as in http://10.0.0.7:8000. Without it, that of passthrough.api_base."),
    ] = None
    api_key: Annotated[
        str | None, described("The server's own key. It is kept encrypted, and nobody can see it again.")
    ] = None
    input_cost_per_token: Annotated[_Price | None, described("US dollars for a token of a prompt.")] = None
    output_cost_per_token: Annotated[_Price | None, described("US dollars for a token of an answer.")] = None
    weight: Annotated[
        _Whole | None, described("The entry's share of the requests, beside entries of the same name.")
    ] = None
    order: Annotated[
        _Whole | None, described("Entries with a higher number get requests only where those with a lower fail.")
    ] = None
    max_parallel_requests: Annotated[_Whole | None, described("The most requests in flight at the server.")] = None
    rpm: Annotated[_Whole | None, described("The most requests in any 60 seconds that the entry gets.")] = None
    tpm: Annotated[_Whole | None, described("The most tokens in any 60 seconds that the entry gets.")] = None
    settings: Annotated[
        dict[str, Any] | None,
        described("Other settings of the entry's `litellm_params`. null takes a setting out."),
    ] = None


def _read(entry: Json) -> Json:
    params, info = entry["litellm_params"], entry["model_info"]
    return {
        **{name: params.get(name) for name in ModelEntryFields.__struct_fields__},
        **{name: info.get(name) or None for name in _DESCRIBED},
        "model_name": entry["model_name"],
        "model": str(params["model"]).removeprefix(_PREFIX),
        # they are never shown
        "api_key": None,
        "settings": None,
    }


_FORM = Form(
    body=ModelEntryFields,
    groups=(
        Group("Model and server", ("model_name", "model", "api_base", "api_key"), opened=True),
        Group("Prices", _DESCRIBED, opened=True),
        Group("Share and limits", ("weight", "order", "max_parallel_requests", "rpm", "tpm")),
        Group("Other settings", ("settings",)),
    ),
    labels={
        "model_name": "Name",
        "model": "Model at the server",
        "api_base": "Server",
        "api_key": "Key of the server",
        "input_cost_per_token": "Price of a token of a prompt",
        "output_cost_per_token": "Price of a token of an answer",
        "rpm": "Requests in 60 seconds",
        "tpm": "Tokens in 60 seconds",
        "max_parallel_requests": "Requests at a time",
    },
    secrets=frozenset(("api_key",)),
    read=_read,
)


def body_of(fields: Json) -> Json:
    """Return the API's body for some fields of the form."""
    params = {name: value for name, value in fields.items() if name not in ("model_name", "settings")}
    if params.get("model"):
        params["model"] = _PREFIX + str(params["model"]).removeprefix(_PREFIX)
    params.update(fields.get("settings") or {})
    named = {"model_name": fields["model_name"]} if "model_name" in fields else {}
    return {**named, **({"litellm_params": params} if params else {})}


async def _find(call: PageCall, identity: str) -> Json:
    found = (await call.get("/v2/model/info", modelId=identity))["data"]
    if not found:
        raise NotFound("No such model is known, or your key may not use it.", param="id")
    entry: Json = found[0]
    return entry


def identity_of(entry: Json) -> str:
    """Return the id of an entry, of a list or as the API answers a change."""
    return str(entry["model_info"]["id"])


def _source(entry: Json) -> str:
    return "added here" if entry["model_info"].get("db_model") else "configuration file"


def _price(entry: Json, name: str) -> str:
    price = entry["model_info"].get(name)
    return f"${price * 1_000_000:,.2f}" if price else NOTHING


def _facts(entry: Json) -> list[Fact]:
    params, info = entry["litellm_params"], entry["model_info"]
    shown = {
        "Server": params.get("api_base"),
        "Weight": params.get("weight"),
        "Order": params.get("order"),
        "Requests at a time": params.get("max_parallel_requests"),
        "Requests in 60 seconds": params.get("rpm"),
        "Tokens in 60 seconds": params.get("tpm"),
    }
    return [
        Fact(name="Name", value=entry["model_name"]),
        Fact(name="Model at the server", value=params.get("model")),
        Fact(name="Written in", value=_source(entry)),
        *(Fact(name=name, value=str(value)) for name, value in shown.items() if value is not None),
        Fact(name="Longest context in tokens", value=info.get("max_input_tokens"), kind=NUMBER),
        Fact(name="Price of a million tokens of prompts", value=_price(entry, "input_cost_per_token")),
        Fact(name="Price of a million tokens of answers", value=_price(entry, "output_cost_per_token")),
        Fact(name="ID", value=info["id"], kind=ID),
        *([Fact(name="Made", value=info["created_at"], kind=MOMENT)] if info.get("created_at") else []),
    ]


async def _change(call: PageCall, identity: str, fields: Json) -> Any:
    return await call.post("/model/update", {"id": identity, **body_of(fields)})


async def _delete(call: PageCall, identity: str) -> Any:
    return await call.post("/model/delete", {"id": identity})


MODELS = Noun(
    word="model",
    words="models",
    title="Models",
    about="An entry is a model at a server. Several with one name share its requests. Those of the configuration file "
    "are changed there.",
    path=PATH,
    list_route="/v2/model/info",
    items="data",
    size="size",
    total="total_count",
    sort_names=("sortBy", "sortOrder"),
    identity=identity_of,
    name=lambda entry: str(entry["model_name"]),
    columns=(
        Column(
            title="Model",
            value=lambda entry: link_to(PATH, identity_of(entry), entry["model_name"]),
            kind=LINK,
            sort="model_name",
        ),
        Column(title="At the server", value=lambda entry: str(entry["litellm_params"]["model"]).removeprefix(_PREFIX)),
        Column(title="Server", value=lambda entry: entry["litellm_params"].get("api_base")),
        Column(title="Written in", value=_source, kind=STATUS),
        Column(title="Context", value=lambda entry: entry["model_info"].get("max_input_tokens"), kind=NUMBER),
        Column(title="$ per million, prompt", value=lambda entry: _price(entry, "input_cost_per_token"), sort="costs"),
        Column(title="$ per million, answer", value=lambda entry: _price(entry, "output_cost_per_token")),
    ),
    sort=("model_name", "asc"),
    searched="name",
    info_route="GET /v2/model/info",
    find=_find,
    facts=_facts,
    new_route="POST /model/new",
    new_form=_FORM,
    edit_route="POST /model/update",
    edit_form=_FORM,
    body=body_of,
    change=_change,
    delete_route="POST /model/delete",
    delete=_delete,
    impact_param="id",
    is_fixed=lambda entry: not entry["model_info"].get("db_model"),
)
