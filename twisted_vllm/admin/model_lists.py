"""The models that a caller may use: vLLM's list at the root, and LiteLLM's ``/model/info`` and ``/model_group/info``.

Below ``/vllm`` the pass-through answers the list from the same source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import msgspec

from twisted_vllm.admin.authorization import first_headers
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import Json, PageNumber, Query, Response, SortOrder
from twisted_vllm.admin.responses import send
from twisted_vllm.admin.routing import Access, Routes
from twisted_vllm.config.name_patterns import is_pattern
from twisted_vllm.config.providers import PROVIDER
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.upstreams.listed_entries import ListedEntry
from twisted_vllm.upstreams.served_models import ANTHROPIC_VERSION

#: what a description says of itself is shown, except these names, which the gateway knows better
_OWN = frozenset(("api_key", "api_base", "id", "db_model", "litellm_provider", "key"))


class ModelsQuery(Query, frozen=True, kw_only=True):
    """What to list. Other parameters are ignored, as vLLM ignores them."""

    IGNORES_OTHERS: ClassVar[bool] = True

    return_wildcard_routes: Annotated[str, msgspec.Meta(description="true: names with wildcards are listed too.")] = ""
    healthy_only: Annotated[str, msgspec.Meta(description="true: models without a server that works are left out.")] = (
        ""
    )
    include_metadata: Annotated[str, msgspec.Meta(description="true: the fallbacks of each model are told.")] = ""


class ModelCard(Response, kw_only=True):
    """A model, with all that vLLM says of it."""

    id: Annotated[str, msgspec.Meta(description="The name that callers use.")]
    object: str = "model"
    created: int = 0
    owned_by: str = "vllm"
    root: str | None = None
    parent: Annotated[str | None, msgspec.Meta(description="Of an adapter, the model that it adapts.")] = None
    max_model_len: Annotated[
        int | None, msgspec.Meta(description="Tokens of prompt and completion; null if no server tells.")
    ] = None
    permission: list[Any] = []


class ModelCards(Response, kw_only=True):
    """The models that the caller may use."""

    object: str
    data: list[ModelCard]


class InfoQuery(Query, frozen=True, kw_only=True):
    """Which entries to show. Other parameters are ignored."""

    IGNORES_OTHERS: ClassVar[bool] = True

    litellm_model_id: Annotated[str, msgspec.Meta(description="The id of an entry: only that one.")] = ""


class PagedInfoQuery(Query, frozen=True, kw_only=True):
    """Which entries to show. Other parameters are ignored."""

    IGNORES_OTHERS: ClassVar[bool] = True

    model: Annotated[str, msgspec.Meta(description="A model_name: only its entries.")] = ""
    modelId: Annotated[str, msgspec.Meta(description="The id of an entry: only that one.")] = ""
    search: Annotated[str, msgspec.Meta(description="A part of the model_name, in any case.")] = ""
    wildcard_only: Annotated[str, msgspec.Meta(description="true: only entries whose model_name has wildcards.")] = ""
    sortBy: Annotated[
        str, msgspec.Meta(description="model_name, created_at, updated_at or costs; other values do not sort.")
    ] = ""
    sortOrder: SortOrder = "asc"
    page: PageNumber = 1
    size: Annotated[int, msgspec.Meta(ge=1, le=1_000, description="Entries per page.")] = 50


class GroupQuery(Query, frozen=True, kw_only=True):
    """Which model groups to show. Other parameters are ignored."""

    IGNORES_OTHERS: ClassVar[bool] = True

    model_group: Annotated[str, msgspec.Meta(description="A model_name: only this one.")] = ""


class ModelInfo(Response, kw_only=True):
    """An entry of the model list, in LiteLLM's shape, without keys; with its server's URL for administrators."""

    model_name: str
    litellm_params: Json
    model_info: Json


class ModelInfos(Response, kw_only=True):
    """Entries of the model list."""

    data: list[ModelInfo]


class ModelInfoPage(ModelInfos, kw_only=True):
    """A page of entries."""

    total_count: int
    current_page: int
    total_pages: int
    size: int


class ModelGroup(Response, kw_only=True):
    """All entries of one model_name, in LiteLLM's shape."""

    model_group: str
    providers: list[str]
    max_input_tokens: float | None
    max_output_tokens: float | None
    input_cost_per_token: float | None
    output_cost_per_token: float | None
    input_cost_per_pixel: float | None
    mode: str | None
    tpm: int | None
    rpm: int | None
    supports_parallel_function_calling: bool
    supports_vision: bool
    supports_web_search: bool
    supports_url_context: bool
    supports_reasoning: bool
    supports_function_calling: bool
    supported_openai_params: list[str]
    configurable_clientside_auth_params: None
    description: str | None


class ModelGroups(Response, kw_only=True):
    """Model groups."""

    data: list[ModelGroup]


routes = Routes()

_FOR_LISTS = (ANTHROPIC_VERSION,)


@routes.get(
    "/v1/models",
    "/models",
    # OpenAI's client of an address that ends in /openai/v1, and Azure's
    "/openai/v1/models",
    "/openai/models",
    query=ModelsQuery,
    access=Access.ANY_KEY,
    response=ModelCards,
)
async def listed(call: AdminCall, query: ModelsQuery) -> bytes:
    """Return the models that the caller may use, of all servers, as vLLM describes them.

    With the header ``anthropic-version``, the fields that Anthropic's SDK reads are added.
    """
    models = call.context.models
    models.check_allowed(call.principal)
    headers = first_headers(call.request, _FOR_LISTS)
    return _json(call, await models.listed(call.principal, call.given, headers))


@routes.get(
    "/v1/models/<name:model_id>",
    "/models/<name:model_id>",
    "/openai/v1/models/<name:model_id>",
    "/openai/models/<name:model_id>",
    query=ModelsQuery,
    access=Access.ANY_KEY,
    response=ModelCard,
    errors=(404,),
)
async def one(call: AdminCall, query: ModelsQuery) -> bytes:
    """Return one of the models that the caller may use. Its name may have slashes."""
    models = call.context.models
    models.check_allowed(call.principal)
    headers = first_headers(call.request, _FOR_LISTS)
    return _json(call, await models.retrieve(call.principal, call.path["model_id"], call.given, headers))


@routes.get("/model/info", "/v1/model/info", query=InfoQuery, access=Access.ANY_KEY, response=ModelInfos, errors=(400,))
async def info(call: AdminCall, query: InfoQuery) -> Json:
    """Return the entries of the models that the caller may use; those with wildcards also once for each model."""
    entries = await call.context.models.entries(call.principal, expand=True)
    if query.litellm_model_id:
        entries = [each for each in entries if each.entry.model_id == query.litellm_model_id][:1]
        if not entries:
            raise InvalidRequest("No entry has this id that the key may use.", param="litellm_model_id")
    return {"data": _infos(entries, call)}


@routes.get("/v2/model/info", query=PagedInfoQuery, access=Access.ANY_KEY, response=ModelInfoPage)
async def paged_info(call: AdminCall, query: PagedInfoQuery) -> Json:
    """Return a page of the entries of the models that the caller may use."""
    entries: Sequence[ListedEntry] = await call.context.models.entries(call.principal, expand=False)
    part = query.search.lower()
    found = [
        each
        for each in entries
        if query.model in ("", each.entry.model_name)
        and query.modelId in ("", each.entry.model_id)
        and part in each.entry.model_name.lower()
        and (query.wildcard_only.lower() != "true" or is_pattern(each.entry.model_name))
    ]
    if query.sortBy in _ORDERS:
        found.sort(key=_ORDERS[query.sortBy], reverse=query.sortOrder == "desc")
    first = (query.page - 1) * query.size
    return {
        "data": _infos(found[first : first + query.size], call),
        "total_count": len(found),
        "current_page": query.page,
        "total_pages": -(-len(found) // query.size),
        "size": query.size,
    }


@routes.get("/model_group/info", "/v1/model_group/info", query=GroupQuery, access=Access.ANY_KEY, response=ModelGroups)
async def groups(call: AdminCall, query: GroupQuery) -> Json:
    """Return the models that the caller may use, each with what it costs and how long a prompt may be."""
    entries = await call.context.models.entries(call.principal, expand=True, named=query.model_group)
    grouped: dict[str, list[ListedEntry]] = {}
    for each in entries:
        grouped.setdefault(each.entry.model_name, []).append(each)
    return {"data": [group_report(name, members) for name, members in grouped.items()]}


def entry_report(listed: ListedEntry, *, with_server: bool) -> Json:
    """Return an entry as `ModelInfo` describes it.

    Args:
        listed: the entry.
        with_server: whether the URL of its server is shown.
    """
    entry, described = listed.entry, _description(listed)
    model = f"{PROVIDER}/{entry.upstream_model}"
    params: Json = {"model": model}
    if with_server:
        params["api_base"] = entry.server.url.decode("ascii")
    for name, value in (("rpm", entry.rpm), ("tpm", entry.tpm)):
        if value is not None:
            params[name] = value
    params |= {"weight": entry.weight, "order": entry.order}
    length, prices = listed.length, _prices(entry.prices.named())
    return {
        "model_name": entry.model_name,
        "litellm_params": params,
        "model_info": {
            "mode": "chat",
            "max_tokens": length,
            "max_input_tokens": length,
            "max_output_tokens": length,
            "input_cost_per_token": 0.0,
            "output_cost_per_token": 0.0,
            **{name: value for name, value in described.items() if name not in _OWN},
            **prices,
            "id": entry.model_id,
            "db_model": described.get("db_model") is True,
            "litellm_provider": PROVIDER,
            "key": model,
        },
    }


def group_report(name: str, members: Sequence[ListedEntry]) -> Json:
    """Return the entries of a model as `ModelGroup` describes them: the longest prompt and the highest prices."""
    described = [_description(each) for each in members]
    prices = [_prices(each.entry.prices.named()) for each in members]
    lengths = [each.length for each in members if each.length is not None]

    def says(field: str) -> Any:
        return next((each[field] for each in described if each.get(field) is not None), None)

    def text(field: str) -> str | None:
        found = says(field)
        return found if isinstance(found, str) else None

    def number(field: str) -> float | None:
        found = says(field)
        return found if isinstance(found, int | float) and not isinstance(found, bool) else None

    def sum_of(limits: Iterable[int | None]) -> int | None:
        known = [limit for limit in limits if limit is not None]
        return sum(known) if known else None

    longest = max(lengths, default=None)
    return {
        "model_group": name,
        "providers": [PROVIDER],
        "max_input_tokens": number("max_input_tokens") or longest,
        "max_output_tokens": number("max_output_tokens") or longest,
        "input_cost_per_token": max(each.get("input_cost_per_token", 0.0) for each in prices),
        "output_cost_per_token": max(each.get("output_cost_per_token", 0.0) for each in prices),
        "input_cost_per_pixel": None,
        "mode": text("mode") or "chat",
        "tpm": sum_of(each.entry.tpm for each in members),
        "rpm": sum_of(each.entry.rpm for each in members),
        **{field: says(field) is True for field in _SUPPORTS},
        "supported_openai_params": [],
        "configurable_clientside_auth_params": None,
        "description": text("description"),
    }


_SUPPORTS = (
    "supports_parallel_function_calling",
    "supports_vision",
    "supports_web_search",
    "supports_url_context",
    "supports_reasoning",
    "supports_function_calling",
)


def _infos(entries: Iterable[ListedEntry], call: AdminCall) -> list[Json]:
    with_server = call.scope.sees_all
    return [entry_report(each, with_server=with_server) for each in entries]


def _description(listed: ListedEntry) -> Json:
    found: Json = msgspec.json.decode(listed.entry.description)
    return found


def _prices(named: Any) -> dict[str, float]:
    return {name: float(price) for name, price in named.items() if isinstance(price, Decimal)}


def _order(field: str) -> Any:
    return lambda each: str(_description(each).get(field) or "")


_ORDERS: dict[str, Any] = {
    "model_name": lambda each: each.entry.model_name.lower(),
    "created_at": _order("created_at"),
    "updated_at": _order("updated_at"),
    "costs": lambda each: sum(_prices(each.entry.prices.named()).values()),
}


def _json(call: AdminCall, body: bytes) -> bytes:
    return send(call.request, 200, [(b"content-type", b"application/json")], body)
