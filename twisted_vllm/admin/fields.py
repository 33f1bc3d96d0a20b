"""The fields of the admin API's bodies whose checks say more than a schema does: here is what a schema can say of them.

What is checked beyond a type and a length is checked in code, whose refusals say what to do instead; the patterns are
for who reads the document of the API, and no stricter than need be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from twisted_vllm.admin.schemas import LONGEST, MOST, PRINTABLE, SPECIAL_MODELS, Label
from twisted_vllm.api_routes import RouteClass
from twisted_vllm.auth.records import MANAGEMENT
from twisted_vllm.auth.steering_headers import OPERATORS_HEADERS

ROLES = ("internal_user", "internal_user_viewer")

_CLASSES = "|".join(
    (*(each.value for each in RouteClass), MANAGEMENT, "management_routes", "llm_api_routes", "info_routes")
)
_NO_MODEL = "|".join(SPECIAL_MODELS)


def one_of_fields(*names: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a schema that says that one of these fields must hold something.

    Args:
        names: the fields.
        given: what the one must be; a string where that is not said.
    """
    given = given or {"type": "string"}
    return {"anyOf": [{"required": [name], "properties": {name: given}} for name in names]}


def _text(pattern: str, description: str | None = None) -> msgspec.Meta:
    return msgspec.Meta(
        min_length=1, max_length=LONGEST, description=description, extra_json_schema={"pattern": pattern}
    )


#: a name that stands in logs
Alias = Annotated[str, _text(f"^(?!sk-){PRINTABLE[1:]}", "A name that does not look like a key.")]

#: the names of models, with wildcards
Models = Annotated[
    tuple[Annotated[str, _text(f"^(?!({_NO_MODEL})$){PRINTABLE[1:]}")], ...],
    msgspec.Meta(max_length=MOST, description="Names of models, `*` and `?` as wildcards; empty allows all."),
]

#: the caller's names of models, and what each stands for
ModelAliases = Annotated[
    dict[Label, Label],
    msgspec.Meta(max_length=MOST, description="The caller's names of models, and the model that each stands for."),
]

#: a number and its unit
UNITS = "[1-9][0-9]{0,4}(s|m|h|d|w)|[1-9][0-9]{0,3}mo"

#: how long something lasts
Duration = Annotated[
    str,
    msgspec.Meta(
        description="A number and a unit, one of s, m, h, d, w and mo, as in 30d; null, and -1, are never.",
        extra_json_schema={"pattern": f"^({UNITS}|-1)$"},
    ),
]

#: how long the former value of a key works, which must end
GracePeriod = Annotated[
    str,
    msgspec.Meta(description="As a duration, but never.", extra_json_schema={"pattern": f"^({UNITS}|0s)?$"}),
]
NoGrace = Annotated[int, msgspec.Meta(extra_json_schema={"const": 0})]

#: LiteLLM's number for it
Never = Annotated[int, msgspec.Meta(extra_json_schema={"const": -1})]

#: a key that the administrator made up
CustomKey = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^sk-[!-~]{13,509}$"})]

#: a key as it is, or its SHA-256
KeyOrHash = Annotated[
    str, msgspec.Meta(description="The key, or its SHA-256 in hex.", extra_json_schema={"pattern": PRINTABLE})
]

#: what a key may call
RouteRules = Annotated[
    tuple[
        Annotated[
            str,
            _text(
                rf"^({_CLASSES}|(/vllm)?(/[A-Za-z0-9_~-]+)+(/\*)?)$",
                "A path, `prefix/*`, or the name of a class of routes.",
            ),
        ],
        ...,
    ],
    msgspec.Meta(max_length=MOST),
]

#: the operator's headers that a key's callers may set
GrantedHeaders = Annotated[
    tuple[
        Annotated[
            str,
            msgspec.Meta(
                min_length=1,
                max_length=LONGEST,
                extra_json_schema={"enum": sorted(name.decode() for name in OPERATORS_HEADERS)},
            ),
        ],
        ...,
    ],
    msgspec.Meta(max_length=MOST),
]

Email = Annotated[str, _text(f"{PRINTABLE[:-2]}*@{PRINTABLE[1:]}", "An address with an @.")]
Role = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(ROLES)})]
