"""Checkers of LiteLLM's router settings."""

from __future__ import annotations

import re
from collections.abc import Mapping

from twisted_vllm.config.checks import checker, kind_of, list_of, one_of, text
from twisted_vllm.config.problems import Place, Rejected

#: the strategies, by LiteLLM's names where it has them
STRATEGIES = ("prefix", "least-busy", "latency-based-routing", "session", "round-robin", "simple-shuffle")
DEFAULT_STRATEGY = "prefix"
#: LiteLLM's other strategies, which weigh costs or the usage of other providers
_FOREIGN = frozenset(("cost-based-routing", "usage-based-routing", "usage-based-routing-v2", "provider-budget-routing"))

_ZMQ_ENDPOINT = re.compile(r"tcp://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")

_one_of_ours = one_of(*STRATEGIES)


@checker("text", ", ".join(STRATEGIES))
def routing_strategy(value: object, place: Place) -> str:
    """Check for the name of a strategy; LiteLLM's that are not implemented cause a warning."""
    if isinstance(value, str) and value in _FOREIGN:
        place.warn(f"is not implemented: {DEFAULT_STRATEGY} is used")
        return DEFAULT_STRATEGY
    return _one_of_ours(value, place)


@checker("endpoint", "tcp://HOST:PORT")
def zmq_endpoint(value: object, place: Place) -> str:
    """Check for an address that ZMQ can connect to."""
    found = text(value, place)
    if "*" in found:
        raise Rejected("is what the server listens on (write the server's name or address in place of *)")
    matched = _ZMQ_ENDPOINT.fullmatch(found)
    if matched is None or not 0 < int(matched["port"]) < 1 << 16:
        raise Rejected("must be tcp://HOST:PORT")
    return found


@checker("list of names")
def model_names(value: object, place: Place) -> tuple[str, ...]:
    """Check for a list of model names."""
    return list_of(text)([] if value is None else value, place)


@checker("mapping of models to lists of models, or a list of such")
def fallback_lists(value: object, place: Place) -> Mapping[str, tuple[str, ...]]:
    """Check for mappings of a model to those that are tried in its place: one, or as in LiteLLM a list of them."""
    found: dict[str, tuple[str, ...]] = {}
    for index, each in enumerate(_list(value)):
        here = place.item(index)
        if not isinstance(each, dict):
            here.refuse(f"must be a mapping of a model to a list of models, not {kind_of(each)}")
            continue
        for name, others in each.items():
            at = here.key(name)
            checked = at.attempt(text, name), at.attempt(model_names, others)
            if checked[0] is None or checked[1] is None:
                continue
            if name in found:
                at.refuse("stands twice (keep one)")
            elif name in checked[1]:
                at.refuse("names itself")
            found[name] = checked[1]
    return found


@checker("mapping of names to models")
def aliases(value: object, place: Place) -> Mapping[str, str]:
    """Check for a mapping of further names to model names, each a name or LiteLLM's ``{model: …, hidden: …}``."""
    if value is not None and not isinstance(value, dict):
        raise Rejected(f"must be a mapping of names to models, not {kind_of(value)}")
    found: dict[str, str] = {}
    for name, content in (value or {}).items():
        at = place.key(name)
        target = content.get("model") if isinstance(content, dict) else content
        checked = at.attempt(text, name), at.attempt(text, target)
        if checked[0] is not None and checked[1] is not None:
            found[checked[0]] = checked[1]
    return found


def _list(value: object) -> list[object]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise Rejected(f"must be a list of mappings of a model to a list of models, not {kind_of(value)}")
    return value
