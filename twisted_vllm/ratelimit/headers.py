"""The headers ``x-ratelimit-*``, with OpenAI's names and formats."""

from __future__ import annotations

from math import ceil

Headers = list[tuple[bytes, bytes]]
#: a limit, the amount left, and the seconds until the whole limit is available again
LimitState = tuple[int, int, float]

_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")
_REQUEST_LINES, _TOKEN_LINES = (b"%b: %%d\r\n%b: %%d\r\n%b: %%b\r\n" % names for names in (_REQUESTS, _TOKENS))


def limit_headers(requests: LimitState | None, tokens: LimitState | None) -> Headers:
    """Return the headers of the tightest limits; None means no limit."""
    return [
        (name, value)
        for name, _, value in (line.partition(b": ") for line in limit_lines(requests, tokens).splitlines())
    ]


def limit_lines(requests: LimitState | None, tokens: LimitState | None) -> bytes:
    """Return the same headers as serialized lines."""
    lines = b""
    if requests is not None:
        limit, left, reset = requests
        lines = _REQUEST_LINES % (limit, left if left > 0 else 0, go_duration(reset))
    if tokens is not None:
        limit, left, reset = tokens
        lines += _TOKEN_LINES % (limit, left if left > 0 else 0, go_duration(reset))
    return lines


def go_duration(seconds: float) -> bytes:
    """Return a duration in OpenAI's format, which is Go's, rounded up: ``0s``, ``20ms``, ``8.64s``, ``1m0s``."""
    if seconds == 60.0:
        # A shortcut for nearly every request that is admitted.
        return b"1m0s"
    milliseconds = ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, rest = divmod(milliseconds, 1000)
    fraction = (b".%03d" % rest).rstrip(b"0") if rest else b""
    return (b"%dm" % minutes if minutes else b"") + b"%d" % whole + fraction + b"s"
