"""What the document of the admin API says of one route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import msgspec

from twisted_vllm.admin.queries import NoQuery, Query


@attrs.frozen
class Operation:
    """What the document says of a route beside its docstring.

    Attributes:
        answer: what it answers in JSON; a struct, or another type that msgspec knows; None where it answers none.
        body: what it takes, where it takes a body.
        narrows: what more holds for the body than its struct says, as JSON Schema.
        query: what its query may hold.
        refusals: the statuses that it refuses with, beside those of every route like it.
        may_be_empty: whether a body that is narrowed may still hold nothing.
        is_open: whether it is open to everyone.
        failure: what it answers with a 503, if that is no mere refusal.
        other_types: other media types in which it can answer.
    """

    answer: Any
    body: type[msgspec.Struct] | None = None
    narrows: Mapping[str, Any] | None = None
    query: type[Query] = NoQuery
    refusals: tuple[int, ...] = ()
    may_be_empty: bool = False
    is_open: bool = False
    failure: type[msgspec.Struct] | None = None
    other_types: tuple[str, ...] = ()
