"""The headers ``x-ratelimit-*``, with OpenAI's names and formats."""

from __future__ import annotations

from math import ceil

Headers = list[tuple[bytes, bytes]]
#: a limit, what is left of it, and the seconds until all of it is there again
Standing = tuple[int, int, float]


_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")

#: the same as lines of a head, to be filled in
REQUEST_LINES, TOKEN_LINES = (
    b"".join(name + b": " + value + b"\r\n" for name, value in zip(names, (b"%d", b"%d", b"%b"), strict=True))
    for names in (_REQUESTS, _TOKENS)
)


def limit_headers(requests: Standing | None, tokens: Standing | None) -> Headers:
    """Return what a caller is told of its limits, without those that it has not."""
    found: Headers = []
    if requests is not None:
        _add(found, _REQUESTS, requests)
    if tokens is not None:
        _add(found, _TOKENS, tokens)
    return found


def go_duration(seconds: float) -> bytes:
    """Return a duration as OpenAI writes it, which is Go's way: ``0s``, ``20ms``, ``8.64s``, ``1m0s``; rounded up."""
    if seconds == 60.0:
        # as it is for nearly every request that is admitted
        return b"1m0s"
    milliseconds = ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, rest = divmod(milliseconds, 1000)
    fraction = (b".%03d" % rest).rstrip(b"0") if rest else b""
    return (b"%dm" % minutes if minutes else b"") + b"%d" % whole + fraction + b"s"


def _add(found: Headers, names: tuple[bytes, bytes, bytes], standing: Standing) -> None:
    limit, left, reset = standing
    found.append((names[0], b"%d" % limit))
    found.append((names[1], b"%d" % left if left > 0 else b"0"))
    found.append((names[2], go_duration(reset)))
