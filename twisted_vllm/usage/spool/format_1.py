"""The spool's first format, of which files may be left: a line for each row, its JSON an object with every field."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twisted_vllm.usage.records import Payer, Target, UsageRow, refer


class _Row(msgspec.Struct):
    """A row as it was written, field by field; those that a `UsageRow` has as well are as there."""

    id: str
    request_id: str
    time: int
    kind: str = ""
    key_id: str = ""
    key_hash: str = ""
    key_name: str = ""
    user_id: str | None = None
    team_id: str | None = None
    end_user: str | None = None
    tags: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}
    model: str = ""
    server: str = ""
    route: str = ""
    method: str = ""
    status: int = 0
    outcome: str = ""
    error: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    audio_ms: int = 0
    estimated: bool = False
    cost: int = 0
    prices: Mapping[str, str] = {}
    first_byte_us: int | None = None
    total_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


_decode = msgspec.json.Decoder(_Row).decode

_SAME = tuple(name for name in UsageRow.__struct_fields__ if name in _Row.__struct_fields__ and name != "headers")


def row_of_format_1(text: bytes) -> UsageRow:
    """Return the row that a line's JSON says.

    Raises:
        ValueError: it says none.
    """
    row = _decode(text)
    return UsageRow(
        payer=refer(Payer(row.kind, row.key_id, row.key_hash, row.key_name, row.user_id, row.team_id, row.tags)),
        target=refer(Target(row.model, row.server, row.route, row.method, tuple(row.prices.items()))),
        headers=row.headers or None,
        **{name: getattr(row, name) for name in _SAME},
    )
