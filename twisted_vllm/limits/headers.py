"""The headers ``x-ratelimit-*``, with OpenAI's names and formats."""

from __future__ import annotations

from math import ceil

Headers = list[tuple[bytes, bytes]]
#: a limit, what is left of it, and the seconds until all of it is there again
Standing = tuple[int, int, float]


def limit_headers(requests: Standing | None, tokens: Standing | None) -> Headers:
    """Return what a caller is told of its limits, without those that it has not."""
    found: Headers = []
    for name, standing in ((b"requests", requests), (b"tokens", tokens)):
        if standing is not None:
            limit, left, reset = standing
            found += [
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % max(left, 0)),
                (b"x-ratelimit-reset-" + name, go_duration(reset)),
            ]
    return found


def go_duration(seconds: float) -> bytes:
    """Return a duration as OpenAI writes it, which is Go's way: ``0s``, ``20ms``, ``8.64s``, ``1m0s``; rounded up."""
    milliseconds = ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, rest = divmod(milliseconds, 1000)
    fraction = (b".%03d" % rest).rstrip(b"0") if rest else b""
    return (b"%dm" % minutes if minutes else b"") + b"%d" % whole + fraction + b"s"
