"""The rows of ``model_list``: which names callers use, and what stands behind each."""

from __future__ import annotations

import re
from typing import Any

import attrs

from twisted_vllm.config.address import Address, api_base
from twisted_vllm.config.litellm import ENTRY_PARAMS, MODEL_INFO
from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.prices import PRICES
from twisted_vllm.config.problems import nearest
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import PriceList
from twisted_vllm.config.shape import Section, empty_is_none, kind, list_of, optional, seconds, secret, text, whole

#: LiteLLM's name for vLLM servers, the one provider that the gateway speaks to
PROVIDER = "hosted_vllm"

_WILDCARD = re.compile(r"[*?]")
_PROVIDER_NAME = re.compile(r"[a-z0-9_.-]{1,40}")


@attrs.frozen
class Row:
    """One entry of ``model_list``, checked by itself.

    Attributes:
        place: where it stands.
        model_name: the name that callers use.
        model: the name that the server uses.
        prices: what it costs.
        api_base: the server; ``None`` is the default server.
        api_key: the server's key; ``None`` is the default server's, if it runs there.
        timeout: of a whole exchange, in seconds.
        weight: its share among entries of the same name.
        max_parallel_requests: LiteLLM's name for the server's ``max_concurrent_requests``.
    """

    place: Place
    model_name: str
    model: str
    prices: PriceList
    api_base: Address | None = None
    api_key: Secret | None = None
    timeout: float | None = None
    weight: int = 1
    max_parallel_requests: int | None = None


def model_name(value: object, place: Place) -> str:
    """Check for the name of one model."""
    found = text(value, place)
    if _WILDCARD.search(found):
        raise Rejected("must name one model: wildcards are not supported (write one entry for each model)")
    return found


def hosted_model(value: object, place: Place) -> str:
    """Check for ``hosted_vllm/NAME`` and return NAME."""
    provider, _, name = text(value, place).partition("/")
    if provider != PROVIDER:
        raise Rejected(f"must be {PROVIDER}/NAME; did you mean '{PROVIDER}'?")
    if not name.strip():
        raise Rejected(f"names no model after {PROVIDER}/ (write the name that the server uses)")
    return model_name(name, place)


def model_info(value: object, place: Place) -> dict[str, Any]:
    """Check for a mapping and return its prices; an unknown name is no mistake, as LiteLLM lets anybody add some."""
    if value is not None and not isinstance(value, dict):
        raise Rejected(f"must be a mapping, not {kind(value)}")
    found = {}
    for name, content in (value or {}).items():
        if name in PRICES:
            found[name] = place.key(name).attempt(PRICES[name], content)
        elif name in MODEL_INFO:
            place.key(name).warn("not implemented yet: ignored")
    return found


litellm_params: Section[dict[str, Any]] = Section(
    dict,
    {
        "model": hosted_model,
        "api_base": empty_is_none(api_base),
        "api_key": empty_is_none(secret),
        "timeout": optional(seconds()),
        "weight": whole(1),
        "max_parallel_requests": optional(whole(1)),
        **PRICES,
    },
    required={"model": f"write {PROVIDER}/NAME"},
    ignored=ENTRY_PARAMS,
    hints={"base_url": "write api_base"},
    tolerant=True,
)

entry: Section[dict[str, Any]] = Section(
    dict,
    {"model_name": model_name, "litellm_params": litellm_params, "model_info": model_info},
    required={
        "model_name": "write the name that callers use",
        "litellm_params": f"write model: {PROVIDER}/NAME and api_base below it",
    },
    ignored=frozenset({"rpm", "tpm"}),
    hints={
        "model": "move it to litellm_params",
        "api_base": "move it to litellm_params",
        "api_key": "move it to litellm_params",
    },
    tolerant=True,
)


def row(value: object, place: Place) -> Row | None:
    """Check one entry; ``None`` for one of another provider, which is skipped with a warning."""
    provider = _other_provider(value, place)
    if provider is not None:
        advice = f"only {PROVIDER}/NAME is served" if provider != "vllm" else f"write {PROVIDER}/NAME to serve it"
        place.warn(f"{_entry_name(value)} is of another provider{_named(provider)}: skipped ({advice})")
        return None
    found = entry(value, place)
    if place.report.refused_below(place.path):
        raise Rejected(None)
    params = found["litellm_params"]
    # as LiteLLM has it, the parameters win over the description
    prices = found.get("model_info", {}) | {name: params[name] for name in PRICES if params.get(name) is not None}
    others = {name: value for name, value in params.items() if name not in PRICES}
    return Row(place, found["model_name"], prices=PriceList(**prices), **others)


def rows(value: object, place: Place) -> tuple[Row, ...]:
    """Check all entries."""
    found = tuple(entry for entry in list_of(row)(value, place) if entry is not None)
    if value and not found and not place.report.refused_below(place.path):
        place.warn("every entry was skipped, so that no model of the list is served")
    return found


def _other_provider(value: object, place: Place) -> str | None:
    """Return the provider of an entry that is not vLLM's nor meant to be; ``None`` for all that must be checked."""
    params = value.get("litellm_params") if isinstance(value, dict) else None
    model = params.get("model") if isinstance(params, dict) else None
    try:
        model = place.resolve(model)
    except Rejected:
        return None
    if not isinstance(model, str) or not model.strip():
        return None
    provider, slash, _ = model.partition("/")
    if provider == PROVIDER or nearest(provider, [PROVIDER], cutoff=0.8):
        return None
    return provider if slash else ""


def _named(provider: str) -> str:
    return f" ({provider})" if _PROVIDER_NAME.fullmatch(provider) else ""


def _entry_name(value: Any) -> str:
    name = value.get("model_name")
    return f"the entry '{name[:80]}'" if isinstance(name, str) and name.isprintable() else "the entry"
