"""What a request used, and the row that says so for good: plain values."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What one answer used.

    Attributes:
        prompt_tokens: of the prompt, cached ones included.
        cached_tokens: of those, the ones that came from the prefix cache.
        completion_tokens: of the answer, reasoning included.
        reasoning_tokens: of those, the ones that were reasoning.
        total_tokens: as the server counts them.
        audio_ms: of audio that was read, in milliseconds.
        estimated: whether the figures are the gateway's own and not the server's.
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
    """Who pays: the same for very many rows.

    Attributes:
        kind: of the principal: ``key``, ``master``, ``anonymous`` or ``preflight``.
        key_id: the key's lasting id; empty for the other kinds.
        key_hash: the first digits of the key's SHA-256, or empty.
        key_name: the key's alias or ``sk-...abcd``, else the kind.
        user_id: whose key it is.
        team_id: which team's.
        tags: the key's labels.
    """

    kind: str = ""
    key_id: str = ""
    key_hash: str = ""
    key_name: str = ""
    user_id: str | None = None
    team_id: str | None = None
    tags: tuple[str, ...] = ()


class Target(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What was asked of whom, and at which prices: likewise.

    Attributes:
        model: the model's name as the key's aliases resolve it, or empty.
        server: the name of the vLLM server.
        route: the known route, or the path that the server saw, without its query.
        method: the HTTP method.
        prices: what it is charged at: the price's name in the configuration, and dollars as decimal text, as pairs.
    """

    model: str = ""
    server: str = ""
    route: str = ""
    method: str = ""
    prices: tuple[tuple[str, str], ...] = ()


class UsageRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One request that reached a server. The spool keeps it as a JSON array: a field added later stands at the end.

    Attributes:
        id: what it is known by for good, made here, 32 hex digits: the second of `time`, and 96 random bits.
        time: when it began, in microseconds since 1970.
        payer: who pays: the JSON of a `Payer`, which very many rows share.
        target: what was asked of whom: the JSON of a `Target`, likewise.
        request_id: the ``x-request-id`` that the client and vLLM saw where it is the client's, which may repeat; empty
            where it is `id`.
        end_user: for whom the caller says that it asks.
        headers: what stood in the headers that ``usage_headers`` lists, by lower-case name; None without any.
        status: the status sent to the client; 0 where none was.
        outcome: as in the request's log record.
        error: the gateway's own error code, or empty.
        stream: whether the answer was a stream of events.
        prompt_tokens .. estimated: as in `Usage`.
        cost: in picodollars.
        first_byte_us: from the request's head to the first byte of the response, in microseconds; None without one.
        total_us: from the request's head to its end, in microseconds.
        bytes_in: the request body's size.
        bytes_out: the response body's size.
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
