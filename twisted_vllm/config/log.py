"""Checkers of the settings of the log."""

from __future__ import annotations

from twisted_vllm.config.checks import checker
from twisted_vllm.config.problems import EnvironmentText, Place, Rejected

#: the levels of the log, the lowest first
LEVELS = ("debug", "info", "warn", "error", "critical")


@checker("all, failures or number from 0 to 1")
def request_lines(value: object, place: Place) -> float:
    """Check for which completed requests have a line; return their share."""
    words = {"all": 1.0, "failures": 0.0}
    if isinstance(value, str) and value in words:
        return words[value]
    if isinstance(value, EnvironmentText):
        try:
            value = float(value)
        except ValueError:
            raise Rejected("must be all, failures, or a number from 0 to 1") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise Rejected("must be all, failures, or a number from 0 to 1 (such as 0.1)")
    return float(value)
