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


class UsageRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One request that reached a server. The spool keeps it as JSON: a field added later needs a default.

    Attributes:
        id: what it is known by for good, made here, 32 hex digits; ``request_id`` may be the client's and repeat.
        request_id: the ``x-request-id`` that the client and vLLM saw.
        time: when it began, in microseconds since 1970.
        kind: of the principal: ``key``, ``master`` or ``anonymous``.
        key_id: the key's lasting id; empty for the other kinds.
        key_hash: the first digits of the key's SHA-256, or empty.
        key_name: the key's alias or ``sk-...abcd``, else the kind.
        user_id: whose key it is.
        team_id: which team's.
        end_user: for whom the caller says that it asks.
        tags: the key's labels.
        headers: what stood in the headers that ``usage_headers`` lists, by lower-case name.
        model: the model's name as the key's aliases resolve it, or empty.
        server: the name of the vLLM server.
        route: the path that the server saw, without its query.
        method: the HTTP method.
        status: the status sent to the client; 0 where none was.
        outcome: as in the request's log record.
        error: the gateway's own error code, or empty.
        stream: whether the answer was a stream of events.
        prompt_tokens .. estimated: as in `Usage`.
        cost: in picodollars.
        prices: what it was charged at: the price's name in the configuration, and dollars as decimal text.
        first_byte_us: from the request's head to the first byte of the response, in microseconds; None without one.
        total_us: from the request's head to its end, in microseconds.
        bytes_in: the request body's size.
        bytes_out: the response body's size.
    """

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
