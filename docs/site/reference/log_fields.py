"""``docs/log-fields.md``: the fields of a request in the log, and of the event that sinks get."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import msgspec

from docs.site.reference.markdown_table import WRITTEN, attributes_of, cell, code, table
from twisted_vllm.observability.logging import lines
from twisted_vllm.observability.request_event import Attempt, RequestEvent
from twisted_vllm.observability.request_record import RequestRecord

_HEAD = f"""\
# Fields of the log

{WRITTEN.format(source="RequestRecord and RequestEvent in twisted_vllm/observability")}

A line of the log is a JSON object. [Operations](operations.md#log) says where the log goes and which requests have a line.
A field with its usual value (empty, 0, none) is left out where *always* is empty.

## Every line
"""

_REQUEST = """\
## A request

The line of a request in the log, in the order of its fields.
"""

_EVENT = """\
## The event of a request

What [sinks](sinks.md) of all forms but the log's, and traces get: all that the gateway knows of a request.
"""

_ATTEMPT = """\
### An attempt

Each item of `attempts` of an event.
"""

#: the fields that every line has, or may have
_LINE = {
    "time": ("string", "when it happened; of a request: when it began. ISO 8601 in UTC, with milliseconds"),
    "level": ("string", "`debug`, `info`, `warn`, `error` or `critical`"),
    "namespace": ("string", "the part of the program that says it; `twisted_vllm.requests` for requests"),
    "message": ("string", "what happened; a request has the fields below in its place"),
    "failure": ("string", "the traceback of a fault; left out without one"),
    "process": ("string", "which process says it, with [several workers](operations.md#workers); left out with one"),
}

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", msgspec.Raw: "object"}


def _type(hint: Any) -> str:
    """Return a type in JSON's words."""
    if hint in _TYPES:
        return _TYPES[hint]
    parts = [each for each in get_args(hint) if each not in (type(None), ...)]
    inner = _TYPES.get(parts[0], "object")
    return f"array of {inner}s" if getattr(hint, "__origin__", None) is tuple else inner


def _fields(kind: type) -> str:
    hints = get_type_hints(kind)
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    return table(
        [
            {
                "field": code(name),
                "type": _type(hints[name]),
                "always": "yes" if name in required else "",
                "meaning": cell(text).removesuffix("."),
            }
            for name, text in attributes_of(kind).items()
        ]
    )


def page() -> str:
    """Return the page.

    Raises:
        ValueError: a field is not described.
    """
    if odd := _LINE.keys() ^ set(lines._Event.__struct_fields__):
        raise ValueError(f"the fields of a line differ: {sorted(odd)}")
    line = table([{"field": code(name), "type": kind, "meaning": text} for name, (kind, text) in _LINE.items()])
    return "\n".join(
        [_HEAD, line, _REQUEST, _fields(RequestRecord), _EVENT, _fields(RequestEvent), _ATTEMPT, _fields(Attempt)]
    )
