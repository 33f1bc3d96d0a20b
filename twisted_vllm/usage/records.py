"""The usage of a request, and its ledger row: plain values.

Many rows have the same payer and the same target. A row refers to each by its JSON, which is encoded once and shared:
encoding a row takes a fraction of a microsecond, and these two would take most of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

#: the longest text that every database can index, in characters
MAX_TEXT = 255
#: the longest other text, such as a path, in characters
MAX_LONG_TEXT = 4_096
#: the largest number that every column can hold, summed over a year
MAX_NUMBER = 2**52

_S = TypeVar("_S", bound=msgspec.Struct)

_INDEXED = (
    *("request_id", "key_id", "key_name", "user_id", "team_id", "organization_id", "end_user", "model"),
    "response_id",
)


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The usage of one response.

    Attributes:
        prompt_tokens: tokens of the prompt, including cached ones.
        cached_tokens: tokens of the prompt from the prefix cache.
        completion_tokens: generated tokens, including reasoning.
        reasoning_tokens: generated tokens that were reasoning.
        total_tokens: the server's total.
        audio_ms: processed audio, in milliseconds.
        estimated: whether the gateway estimated the figures; otherwise the server reported them.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    audio_ms: int = 0
    estimated: bool = False


NOTHING_USED = Usage()


class Payer(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Who pays for a request.

    Attributes:
        kind: the principal's kind: ``key``, ``master`` or ``anonymous``.
        key_id: the key's permanent id; empty for the other kinds.
        key_hash: the first digits of the key's SHA-256, or empty.
        key_name: the key's alias or ``sk-...abcd``, else the kind.
        user_id: the key's user.
        team_id: the key's team.
        tags: the key's labels.
        organization_id: the organization of the key, or of its team.
    """

    kind: str = ""
    key_id: str = ""
    key_hash: str = ""
    key_name: str = ""
    user_id: str | None = None
    team_id: str | None = None
    tags: tuple[str, ...] = ()
    organization_id: str | None = None


class Target(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The destination of a request, and its prices.

    Attributes:
        model: the model's name with the key's alias resolved, or empty.
        server: the name of the vLLM server.
        route: the known route, or the server's path without its query.
        method: the HTTP method.
        prices: as `Prices.text`.
    """

    model: str = ""
    server: str = ""
    route: str = ""
    method: str = ""
    prices: tuple[tuple[str, str], ...] = ()


class UsageRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One request that reached a server, or several that cost nothing.

    The spool keeps it as a JSON array: a field added later comes last.

    Attributes:
        id: the row's permanent id, made by the gateway, 32 hex digits: the second of `time`, and 96 random bits.
        time: when the request began, in microseconds since 1970.
        payer: a reference, by `refer`, to the `Payer`.
        target: a reference, by `refer`, to the `Target`.
        request_id: the client's ``x-request-id``, which need not be unique; empty if the gateway made it, as `id`.
        end_user: the end user that the client names.
        headers: the headers in ``usage_headers``, by lower-case name; None without any.
        status: the status sent to the client; 0 without one.
        outcome: as in the request's log record.
        error: the gateway's own error code, or empty.
        stream: whether the response was a stream of events.
        prompt_tokens .. estimated: as in `Usage`.
        cost: in picodollars.
        first_byte_us: from the request's head to the first byte of the response, in microseconds; None without one.
        total_us: from the request's head to its end, in microseconds.
        bytes_in: the size of the request's body.
        bytes_out: the size of the response's body.
        requests: the requests that the row stands for. If they are several, `time`, `id` and what describes a request
            are those of the first, the sums are of all, and there is no `first_byte_us`.
        attempts: the attempts that failed before the one that the row describes, as `RequestContext.failed_attempts`.
        request_tags: the labels that the client gave the request, beside those of its key.
        spend_metadata: what the client wants to find in the row: a JSON object as text, or empty.
        response_id: the id of the server's answer where it does not follow from the id of the request; else empty.
        details: what few requests have: a JSON object as text, by `RowDetails`, or empty.
    """

    id: str
    time: int
    payer: msgspec.Raw
    target: msgspec.Raw
    request_id: str = ""
    end_user: str | None = None
    headers: Mapping[str, str] | None = None
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
    first_byte_us: int | None = None
    total_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    requests: int = 1
    attempts: str = ""
    request_tags: tuple[str, ...] = ()
    spend_metadata: str = ""
    response_id: str = ""
    details: str = ""


class RowDetails(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What few requests have, so that most rows have nothing of it.

    Attributes:
        queued_us: how long it waited for busy servers, in microseconds; None if it did not.
        fallback: the model that was asked in place of the one that it names; empty if none was.
        trace_id: the id of its trace, if that is recorded; else empty.
    """

    queued_us: int | None = None
    fallback: str = ""
    trace_id: str = ""


_json = msgspec.json.Encoder().encode

#: decode what `refer` returns
payer_of = msgspec.json.Decoder(Payer).decode
target_of = msgspec.json.Decoder(Target).decode
#: decode what a row has in `UsageRow.details`
details_of = msgspec.json.Decoder(RowDetails).decode
NO_DETAILS = RowDetails()


def refer(value: Payer | Target) -> msgspec.Raw:
    """Return a row's reference to a value: its JSON."""
    try:
        return msgspec.Raw(_json(value))
    except UnicodeEncodeError:
        # a lone surrogate, from a client's JSON
        return msgspec.Raw(_json(clean_struct(value)))


def details_text(details: RowDetails) -> str:
    """Return details as a row has them."""
    return _json(details).decode()


def clean_struct(struct: _S) -> _S:
    """Return a row, a payer or a target that every database accepts.

    NUL and lone surrogates are replaced, long texts cut and large numbers limited, so that the row is not lost.
    """
    values: list[Any] = []
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, str):
            value = _clean_text(value)[: MAX_TEXT if name in _INDEXED else MAX_LONG_TEXT]
        elif isinstance(value, int) and not isinstance(value, bool):
            value = max(-MAX_NUMBER, min(value, MAX_NUMBER))
        elif name in ("tags", "request_tags"):
            value = tuple(_clean_text(each)[:MAX_TEXT] for each in value)
        elif name == "prices":
            value = tuple((_clean_text(key), _clean_text(each)[:MAX_LONG_TEXT]) for key, each in value)
        elif isinstance(value, dict):
            value = {_clean_text(key): _clean_text(each)[:MAX_LONG_TEXT] for key, each in value.items()}
        values.append(value)
    return type(struct)(*values)


def _clean_text(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
