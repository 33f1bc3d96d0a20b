"""The rules of keys and teams about the fields of a body, as the admin API reads and reports them."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any

import msgspec

from twisted_vllm.admin.fields import MAX_LENGTH
from twisted_vllm.admin.models import Json
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.field_policy.rules import (
    EVERYTHING,
    LIMIT_PATTERN,
    MAX_LIMIT,
    PATH_PATTERN,
    FieldRules,
    parse_limited,
    parse_path,
    rules_of,
)

#: paths in one list
MAX_PATHS = 256

_DESCRIPTION = "The name of a field of a request's body, or a path such as `sampling_params.extra_args`."
_Path = Annotated[
    str,
    msgspec.Meta(
        min_length=1, max_length=MAX_LENGTH, description=_DESCRIPTION, extra_json_schema={"pattern": PATH_PATTERN}
    ),
]
_Limited = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MAX_LENGTH,
        description="The name of a field of a request's body, or a path such as `sampling_params.seed`.",
        extra_json_schema={"pattern": LIMIT_PATTERN},
    ),
]
_Allowed = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MAX_LENGTH,
        description=f"{_DESCRIPTION} `{EVERYTHING}` is every field.",
        extra_json_schema={"pattern": rf"^\*$|{PATH_PATTERN}"},
    ),
]
_Most = Annotated[int, msgspec.Meta(ge=0, le=MAX_LIMIT)]

ForbiddenFields = Annotated[tuple[_Path, ...], msgspec.Meta(max_length=MAX_PATHS)]
AllowedFields = Annotated[tuple[_Allowed, ...], msgspec.Meta(max_length=MAX_PATHS)]
FieldLimits = Annotated[
    dict[_Limited, _Most],
    msgspec.Meta(
        max_length=MAX_PATHS,
        description="The largest value of a number, or size of a list, an object, a text or a schema.",
    ),
]

#: the attribute of `FieldRules` for each field of a request
_ATTRIBUTES = {"forbidden_fields": "forbidden", "field_limits": "limits", "allowed_fields": "allowed"}


def check_paths(name: str, paths: Any) -> None:
    """Check the paths in a field of a request.

    Args:
        name: the field.
        paths: a list of paths, or an object by paths; None for none.

    Raises:
        InvalidRequest: one is not a path.
    """
    parse = parse_limited if name == "field_limits" else parse_path
    for path in paths or ():
        if path == EVERYTHING and name == "allowed_fields":
            continue
        try:
            parse(path)
        except ValueError as error:
            raise InvalidRequest(f"`{name}`: each {error}.", param=name) from None


def changed_rules(values: Json, given: Container[str], before: FieldRules) -> FieldRules:
    """Return the rules after a request: those that it gives replace the ones from before.

    Args:
        values: its fields.
        given: the names of the fields that it has; null in one of them removes these rules.
        before: the rules until now.
    """
    rules: Json = {"forbidden": before.forbidden, "limits": dict(before.limits), "allowed": before.allowed}
    rules.update({_ATTRIBUTES[name]: value for name, value in values.items() if name in given})
    return rules_of(rules["forbidden"] or (), rules["limits"], rules["allowed"] or ())


def report_rules(rules: FieldRules) -> Json:
    """Return the rules under the names of the admin API."""
    return {"forbidden_fields": rules.forbidden, "field_limits": dict(rules.limits)}
