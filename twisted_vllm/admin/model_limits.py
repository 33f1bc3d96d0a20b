"""Finds limits of one model that would never count, because no request is for a model of that name.

Limits use the model's name after the key's ``aliases``. So a limit counts nothing for a key's own name of a model, and
nothing for a wildcard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import attrs

from twisted_vllm.admin.fields import is_printable, redacted
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.ratelimit.allowance import Allowance

#: JSON Schema, before the pattern of printable text: no wildcard, and no dot segment
NAMES_ONE_MODEL = r"^(?!(.*/)?\.\.?(/|$))(?!.*[*?])"

_DOT_SEGMENT = re.compile(r"(?:.*/)?\.\.?(?:/.*)?", re.DOTALL)


def check_limited_models(models: Iterable[str], param: str) -> None:
    """Check the names of models that a request limits.

    Args:
        models: the names.
        param: the field, for the message.

    Raises:
        InvalidRequest: a name has a wildcard, a dot segment or a character that cannot be printed.
    """
    for model in models:
        if not is_printable(model):
            raise InvalidRequest(f"`{param}`: holds a character that cannot be printed.", param=param)
        if "*" in model or "?" in model:
            raise InvalidRequest(
                f"`{param}`: `{redacted(model)}` has a wildcard, and a limit is for one model: write the name of each "
                "model, as requests name it.",
                param=param,
            )
        if _DOT_SEGMENT.fullmatch(model):
            raise InvalidRequest(
                f"`{param}`: `{redacted(model)}` has a dot segment, which is in no model's name: write the name as "
                "requests name the model.",
                param=param,
            )


def with_names_of_team(key: KeyRecord, aliases: Mapping[str, str] | None) -> KeyRecord:
    """Return a key with its team's own names of models, where it has none of its own.

    Args:
        key: the key.
        aliases: those of its team; None for none.
    """
    return attrs.evolve(key, aliases={**(aliases or {}), **key.aliases})


def check_limits_of_key(key: KeyRecord, holders: Mapping[str, Allowance]) -> None:
    """Check that no limit is for a name that is this key's own for another model.

    Args:
        key: the key, after the change.
        holders: whose limits count for its requests: ``key``, ``user`` and ``team``, and the limits of each.

    Raises:
        InvalidRequest: one is.
    """
    for holder, allowance in holders.items():
        for field, name, model in _uncounted(key.aliases, allowance):
            if holder == "key":
                raise InvalidRequest(
                    f"`{field}`: `{redacted(name)}` is this key's own name (`aliases`) for `{redacted(model)}`, and a "
                    f"limit counts the model: write `{redacted(model)}`.",
                    param=field,
                )
            raise InvalidRequest(
                f"`aliases`: the key's {holder} has a `{field}` for `{redacted(name)}`, which counts nothing if that "
                f"is the key's own name for `{redacted(model)}`: use another name, or limit `{redacted(model)}` there.",
                param="aliases",
            )


def check_limits_over_keys(allowance: Allowance, keys: Iterable[KeyRecord]) -> None:
    """Check that no limit of a user or a team is for a name that one of its keys has for another model.

    Args:
        allowance: the limits.
        keys: the keys that they hold for.

    Raises:
        InvalidRequest: one is.
    """
    for key in keys:
        for field, name, model in _uncounted(key.aliases, allowance):
            raise InvalidRequest(
                f"`{field}`: `{redacted(name)}` is the own name (`aliases`) of the key "
                f"`{redacted(key.key_alias or key.key_name)}` for `{redacted(model)}`, and a limit counts the model: "
                f"write `{redacted(model)}`.",
                param=field,
            )


def check_aliases_of_team(aliases: Mapping[str, str], allowance: Allowance) -> None:
    """Check that no limit of a team is for a name that the team has for another model.

    Raises:
        InvalidRequest: one is.
    """
    for field, name, model in _uncounted(aliases, allowance):
        raise InvalidRequest(
            f"`{field}`: `{redacted(name)}` is the team's own name (`model_aliases`) for `{redacted(model)}`, and a "
            f"limit counts the model: write `{redacted(model)}`.",
            param=field,
        )


def _uncounted(aliases: Mapping[str, str], allowance: Allowance) -> Iterator[tuple[str, str, str]]:
    """Yield the field, the name and its model of each limit that counts nothing for a key with these aliases."""
    if not aliases or not allowance.counts_models:
        return
    targets = frozenset(aliases.values())
    by_field: tuple[tuple[str, Mapping[str, object]], ...] = (
        ("model_rpm_limit", allowance.model_rpm),
        ("model_tpm_limit", allowance.model_tpm),
        ("model_max_budget", allowance.model_budgets),
    )
    for field, limits in by_field:
        for name in limits:
            if name in aliases and name not in targets:
                yield field, name, aliases[name]
