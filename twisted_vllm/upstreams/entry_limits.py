"""The ``rpm`` and ``tpm`` of an entry of ``model_list``: what its server gets in a minute, whoever asks.

They are sliding windows, as those of keys. Requests are counted when they are sent; tokens are reserved by an estimate
and settled with what was used.
"""

from __future__ import annotations

from twisted_vllm.ratelimit.windows import Bucket, SteadyTime, Window


class Share:
    """What a request takes of an entry's limits.

    Attributes:
        tokens: the reserved tokens.
        requests_in: where the request is counted; None if requests are not limited, or once it was settled.
        tokens_in: where its tokens are counted, likewise.
    """

    __slots__ = ("requests_in", "tokens", "tokens_in")

    def __init__(self, tokens: int, requests_in: Bucket | None, tokens_in: Bucket | None) -> None:
        self.tokens = tokens
        self.requests_in = requests_in
        self.tokens_in = tokens_in


class EntryLimits:
    """Counts what an entry's server got in the last 60 seconds.

    A request whose estimate is above ``tpm`` goes alone: when nothing else is counted. It must not wait for ever, and
    is counted in full, so that the next one waits.

    Attributes:
        rpm: requests in any 60 seconds; None is no limit. It may change, what was counted stays.
        tpm: tokens in any 60 seconds, likewise.
    """

    __slots__ = ("_requests", "_time", "_tokens", "rpm", "tpm")

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        """Start with nothing counted.

        Args:
            rpm: 1 or more, or None.
            tpm: 1 or more, or None.
        """
        self.rpm = rpm
        self.tpm = tpm
        self._time = SteadyTime()
        self._requests = Window()
        self._tokens = Window()

    def __repr__(self) -> str:
        return f"<EntryLimits {self._requests.used} of {self.rpm} requests, {self._tokens.used} of {self.tpm} tokens>"

    def wait(self, tokens: int, now: float) -> int:
        """Return the whole seconds until a request has room, if nothing else is counted meanwhile; 0 if it has.

        Args:
            tokens: its estimated tokens.
            now: the clock's time, in seconds.
        """
        now = self._time.at(now)
        seconds = 0
        if self.rpm is not None:
            seconds = self._requests.expire(now).wait(self.rpm, 1, now) or 0
        if self.tpm is not None:
            # what is used up lets nothing pass, even with an estimate of 0
            amount = min(max(tokens, 1), self.tpm)
            seconds = max(seconds, self._tokens.expire(now).wait(self.tpm, amount, now) or 0)
        return seconds

    def known_wait(self, tokens: int, now: float) -> int:
        """Return the whole seconds for which a request certainly has no room."""
        return self.wait(tokens, now)

    def take(self, tokens: int, now: float) -> Share:
        """Count a request that is sent.

        Args:
            tokens: its estimated tokens.
            now: the clock's time, in seconds.
        """
        now = self._time.at(now)
        return Share(
            tokens,
            None if self.rpm is None else self._requests.expire(now).add(now, 1),
            None if self.tpm is None else self._tokens.expire(now).add(now, tokens),
        )

    def settle(self, share: Share, tokens: int, now: float, *, sent: bool = True) -> None:
        """Replace a request's estimate by what it used. Idempotent.

        Args:
            share: what `take` returned.
            tokens: the used tokens.
            now: the clock's time, in seconds.
            sent: whether anything of it reached the server; if not, it does not count.
        """
        now = self._time.at(now)
        requests_in, tokens_in = share.requests_in, share.tokens_in
        share.requests_in = share.tokens_in = None
        if requests_in is not None and not sent:
            self._requests.expire(now).correct(requests_in, -1, now)
        if tokens_in is not None:
            self._tokens.expire(now).correct(tokens_in, (tokens if sent else 0) - share.tokens, now)
