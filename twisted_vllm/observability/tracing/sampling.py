"""Decides which traces are recorded.

Nobody may have more recorded than the settings say. So the caller's own decision holds only if the caller is trusted
with it, and a trace whose id a caller chose is decided by random digits of our own: the ratio goes by the digits of the
id, and a caller could choose them.
"""

from __future__ import annotations

import attrs

from twisted_vllm.auth.records import Principal
from twisted_vllm.config.tracing import ADMINISTRATORS, EVERYBODY, KEYS, NOBODY

#: the ratio goes by this many low bits of a trace's id, as OpenTelemetry's TraceIdRatioBased
_BITS = 56
_DIGITS = _BITS // 4

#: the gateway's own routes that programs ask all the time
_PROBES = ("/health", "/metrics")


@attrs.frozen
class Sampler:
    """The settings of sampling.

    Attributes:
        parent_based: whether the decision of a trusted caller holds.
        threshold: a trace is recorded if the number in its low bits is below.
        trust_incoming: whose trace is continued.
        trust_sampled: whose decision holds.
    """

    parent_based: bool
    threshold: int
    trust_incoming: str
    trust_sampled: str

    @classmethod
    def of(cls, sampler: str, ratio: float, trust_incoming: str, trust_sampled: str) -> Sampler:
        """Make it from the settings; `sampler` is one of OpenTelemetry's names."""
        parent_based = sampler.startswith("parentbased_")
        root = sampler.removeprefix("parentbased_")
        share = {"always_on": 1.0, "always_off": 0.0}.get(root, ratio)
        return cls(parent_based, round(share * (1 << _BITS)), trust_incoming, trust_sampled)

    def continues(self, principal: Principal | None) -> bool:
        """Return whether the trace of a caller is continued."""
        return trusts(self.trust_incoming, principal)

    def obeys(self, principal: Principal | None) -> bool:
        """Return whether the decision of a caller, whose trace is continued, holds."""
        return self.parent_based and trusts(self.trust_sampled, principal)

    def takes(self, random: str) -> bool:
        """Return whether a trace is recorded that goes by ratio; `random` are hex digits that no caller chose."""
        return int(random[-_DIGITS:], 16) < self.threshold


def trusts(who: str, principal: Principal | None) -> bool:
    """Return whether a caller is among those who are trusted.

    Without a master key everybody is let in: that is as good as a key, and makes no administrator.
    """
    if who == EVERYBODY:
        return True
    if who == NOBODY or principal is None or principal.kind == "preflight":
        return False
    if who == KEYS:
        return True
    assert who == ADMINISTRATORS
    return principal.kind == "master" or (principal.kind == "key" and principal.may_administer)


class ErrorAllowance:
    """How many failed requests may be recorded that were not sampled."""

    __slots__ = ("_left", "_most", "_second")

    def __init__(self, most: int) -> None:
        """Allow `most` in each second."""
        self._most = most
        self._left = most
        self._second = -1

    def take(self, now: float) -> bool:
        """Return whether one more may be recorded.

        Args:
            now: the time, in seconds.
        """
        second = int(now)
        if second != self._second:
            self._second, self._left = second, self._most
        if self._left <= 0:
            return False
        self._left -= 1
        return True


def is_probe(target: bytes) -> bool:
    """Return whether a request only asks how the gateway is; `target` is its path and query."""
    path = target.partition(b"?")[0].decode("latin-1")
    return any(path == each or path.startswith(f"{each}/") for each in _PROBES)
