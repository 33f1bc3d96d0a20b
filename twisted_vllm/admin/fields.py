"""The types of the fields that several requests share, and the checks that a JSON Schema cannot express.

A field's pattern in the OpenAPI document is never stricter than the check in code. The code decides, because its
message can say what to send instead.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.api_routes import RouteClass
from twisted_vllm.auth.records import MANAGEMENT
from twisted_vllm.auth.roles import ROLES as ROLES
from twisted_vllm.auth.steering_headers import GRANTABLE_HEADERS
from twisted_vllm.errors import InvalidRequest

#: characters of a name, and items of a list
MAX_LENGTH = 255
MAX_ITEMS = 1000

#: nesting levels of `metadata`; some JSON readers refuse more
_MAX_DEPTH = 32

#: characters of a caller's text that an error message repeats
_MAX_QUOTED = 40

#: text without line breaks, invisible characters and direction marks, which could forge log lines and names; code
#: points that Unicode has not assigned yet are allowed, because the tables of two programs differ in them
PRINTABLE = (
    r"^[^\x00-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff0-\uffff"
    "\U000e0000-\U000e0fff]*$"
)
_printable = re.compile(PRINTABLE.removesuffix("$"))

#: LiteLLM's special model names that mean the same as an empty list: anywhere, and in a key of a team
ALL_MODELS, TEAM_MODELS = "all-proxy-models", "all-team-models"
#: those that have no meaning, in what is no key of a team, and what to do instead
SPECIAL_MODELS = {
    TEAM_MODELS: "leave `models` empty instead: a key is held to its team's models in any case",
    "no-default-models": "block what shall use no model",
}

_ROUTE_CLASSES = "|".join(
    (*(each.value for each in RouteClass), MANAGEMENT, "management_routes", "llm_api_routes", "info_routes")
)
_NO_MODEL = "|".join(SPECIAL_MODELS)


def one_of_fields(*names: str, value: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a JSON Schema that requires at least one of some fields.

    Args:
        names: the fields.
        value: the schema of the field's value; any string by default.
    """
    value = value or {"type": "string"}
    return {"anyOf": [{"required": [name], "properties": {name: value}} for name in names]}


#: JSON Schema: a request names a user
NAMES_USER = one_of_fields("user_id", "user_email")


def _text(pattern: str, description: str | None = None) -> msgspec.Meta:
    return msgspec.Meta(
        min_length=1, max_length=MAX_LENGTH, description=description, extra_json_schema={"pattern": pattern}
    )


Label = Annotated[str, _text(PRINTABLE)]
Labels = Annotated[tuple[Label, ...], msgspec.Meta(max_length=MAX_ITEMS)]

#: the id of what a record belongs to, and the fields that hold one
Reference = Annotated[
    str,
    msgspec.Meta(
        max_length=MAX_LENGTH,
        description="An id. Empty is the same as no field.",
        extra_json_schema={"pattern": PRINTABLE},
    ),
]
REFERENCES = frozenset(("budget_id", "organization_id", "team_id"))

#: a name that is written to logs
Alias = Annotated[str, _text(f"^(?!sk-){PRINTABLE[1:]}", "A name. It must not look like a key.")]

Models = Annotated[
    tuple[Annotated[str, _text(f"^(?!({_NO_MODEL})$){PRINTABLE[1:]}")], ...],
    msgspec.Meta(max_length=MAX_ITEMS, description="Model names, with the wildcards `*` and `?`. Empty allows all."),
]

ModelAliases = Annotated[
    dict[Label, Label],
    msgspec.Meta(max_length=MAX_ITEMS, description="The caller's model names, and the model that each stands for."),
]

#: a number and its unit
UNITS = "[1-9][0-9]{0,4}(s|m|h|d|w)|[1-9][0-9]{0,3}mo"

Duration = Annotated[
    str,
    msgspec.Meta(
        description="A number and a unit (s, m, h, d, w or mo), as in 30d. null and -1 mean never.",
        extra_json_schema={"pattern": f"^({UNITS}|-1)$"},
    ),
]

#: LiteLLM's number for "never expires"
Never = Annotated[int, msgspec.Meta(extra_json_schema={"const": -1})]

GracePeriod = Annotated[
    str,
    msgspec.Meta(
        description="How long the old value still works, as a duration.",
        extra_json_schema={"pattern": f"^({UNITS}|0s)?$"},
    ),
]
NoGrace = Annotated[int, msgspec.Meta(extra_json_schema={"const": 0})]

#: a key that the administrator chose
CustomKey = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^sk-[!-~]{13,509}$"})]

KeyOrHash = Annotated[
    str, msgspec.Meta(description="The key, or its SHA-256 in hex.", extra_json_schema={"pattern": PRINTABLE})
]

RouteRules = Annotated[
    tuple[
        Annotated[
            str,
            _text(
                rf"^({_ROUTE_CLASSES}|(/vllm)?(/[A-Za-z0-9_~-]+)+(/\*)?)$",
                "A path, `prefix/*`, or the name of a class of routes.",
            ),
        ],
        ...,
    ],
    msgspec.Meta(max_length=MAX_ITEMS),
]

#: what is kept of prompts and answers for traces and sinks
LogMode = Literal["off", "metadata", "full"]

#: the operator's headers that a key's callers may set
GrantedHeaders = Annotated[
    tuple[
        Annotated[
            str,
            msgspec.Meta(
                min_length=1,
                max_length=MAX_LENGTH,
                extra_json_schema={"enum": sorted(name.decode() for name in GRANTABLE_HEADERS)},
            ),
        ],
        ...,
    ],
    msgspec.Meta(max_length=MAX_ITEMS),
]

Email = Annotated[str, _text(f"{PRINTABLE[:-2]}*@{PRINTABLE[1:]}", "An email address.")]
Role = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(ROLES)})]


def is_printable(text: str) -> bool:
    """Return whether a text is fit for a name in a log line."""
    return _printable.fullmatch(text) is not None


def check_printable(name: str, value: object) -> None:
    """Check the text in a value: control characters forge log lines, and PostgreSQL stores no NUL.

    Args:
        name: the path of the value, for the message.
        value: a string, or a tuple or struct of them; anything else passes.

    Raises:
        InvalidRequest: a text has a character that cannot be printed.
    """
    if isinstance(value, str) and not is_printable(value):
        raise InvalidRequest(f"`{name}`: holds a character that cannot be printed.", param=name)
    if isinstance(value, tuple):
        for number, item in enumerate(value):
            check_printable(f"{name}[{number}]", item)
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            check_printable(f"{name}.{field}", getattr(value, field))


def check_alias(alias: str | None, param: str) -> None:
    """Check that a name or an id, which is written to logs, is not a key in the wrong place.

    Raises:
        InvalidRequest: it looks like a key.
    """
    if alias is not None and alias.startswith("sk-"):
        raise InvalidRequest(f"`{param}` stands in logs and must not look like a key: begin it otherwise.", param=param)


def check_email(address: str | None, param: str) -> None:
    """Check that an email address has an ``@``.

    Raises:
        InvalidRequest: it has none.
    """
    if address is not None and "@" not in address:
        raise InvalidRequest(f"`{param}` must be an address with an @.", param=param)


def check_member_named(user_id: str | None, user_email: str | None, param: str) -> None:
    """Check that a request names the member whom it is about.

    Raises:
        InvalidRequest: it has neither an id nor an address.
    """
    if user_id is None and user_email is None:
        raise InvalidRequest("Name the member: `user_id`, or `user_email`.", param=param)


def check_models(models: Iterable[str] | None) -> None:
    """Check that no model is one of LiteLLM's special names without a meaning here.

    Raises:
        InvalidRequest: one is.
    """
    for model in models or ():
        if model in SPECIAL_MODELS:
            raise InvalidRequest(f"`{model}` cannot be used: {SPECIAL_MODELS[model]}.", param="models")


def stored_models(models: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return models as they are stored: an empty list allows all."""
    return () if models is None or ALL_MODELS in models else models


def check_printable_aliases(aliases: Mapping[str, str] | None, param: str = "aliases") -> None:
    """Check that names of models can be printed.

    Raises:
        InvalidRequest: one cannot.
    """
    for each in (*(aliases or {}).keys(), *(aliases or {}).values()):
        if not is_printable(each):
            raise InvalidRequest(f"`{param}`: holds a character that cannot be printed.", param=param)


def check_depth(metadata: object, name: str = "metadata") -> None:
    """Check that a value is not nested deeper than JSON readers accept.

    Raises:
        InvalidRequest: it is.
    """
    level = [metadata]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise InvalidRequest(f"`{name}` must not be nested deeper than {_MAX_DEPTH} levels.", param=name)


def redacted(text: str) -> str:
    """Return a caller's text for an error message, or ``…`` where it may be a key."""
    return text if len(text) <= _MAX_QUOTED and text.isprintable() and not text.startswith("sk-") else "…"


_DURATION = re.compile(r"([0-9]{1,9})(s|mo|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def expiry_of(duration: str | int | None, now: datetime, name: str = "duration") -> datetime | None:
    """Return when a duration that starts now ends.

    Durations are LiteLLM's: ``30s``, ``15m``, ``12h``, ``7d``, ``2w``, ``1mo``. A month is a calendar month: from
    31 January, ``1mo`` ends on the last day of February.

    Args:
        duration: a number and its unit; ``None`` and -1 never end.
        now: the current time, with a time zone.
        name: the field's name, for messages.

    Raises:
        InvalidRequest: it is not a duration, is zero, or ends after the year 9999.
    """
    if duration is None or duration in (-1, "-1"):
        return None
    parts = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if parts is None:
        raise InvalidRequest(
            f"`{name}` must be a number and a unit, one of s, m, h, d, w and mo (as in 30d), or null for never.",
            param=name,
        )
    number, unit = int(parts[1]), parts[2]
    if number == 0:
        raise InvalidRequest(f"`{name}` must not be zero: such a key would never work.", param=name)
    try:
        return _add_months(now, number) if unit == "mo" else now + timedelta(seconds=number * _SECONDS[unit])
    except (OverflowError, ValueError):
        raise InvalidRequest(f"`{name}` ends after the year 9999. Send null for never.", param=name) from None


def _add_months(now: datetime, months: int) -> datetime:
    years, month = divmod(now.month - 1 + months, 12)
    year = now.year + years
    if year > 9999:
        raise OverflowError
    return now.replace(year=year, month=month + 1, day=min(now.day, monthrange(year, month + 1)[1]))
