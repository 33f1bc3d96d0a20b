"""A valid value for each setting that differs from the one that it has."""

from __future__ import annotations

from typing import Any

from twisted_vllm.config.checks import Checker
from twisted_vllm.config.declaration import Setting
from twisted_vllm.config.problems import Place, Report

#: values of every kind of setting, of which the checkers take what they accept
OTHERS: tuple[Any, ...] = (
    *(True, False, 7, 2, 0.5, 11.5, "7d", "warn", "text", "refuse", "passive", "json", "other.log", "x-other"),
    *(["x-other"], ["10.0.0.0/8"], ["https://other.example.com"], ["other.example.com"], ["/metrics"], ["https"]),
    *("session", "round-robin", [503], {"n": 3}, {"m": ["other"]}, {"other": "m"}, [{"m": ["other"]}], ["other"]),
    *("/other", "x", "internal_user", "sk-another-master-key", ["n"], ["logprobs"], ["vllm_xargs"]),
    *([{"role": "r", "internal_role": "team"}], [{"scope": "s", "models": ["m"]}], ["ES256"]),
    *("sqlite:///other.sqlite3", "redis://127.0.0.1:6380/0", "127.0.0.1:5353"),
    # without TLS, whose files would be read
    *("http://127.0.0.1:9/v1/metrics", "grpc", "delta", "none"),
    *("slack", ["budget_alerts"], {"budget_alerts": "https://hooks.example.com/x"}, "https://hooks.example.com/x"),
    *(422, [{"name": "other"}], {"n": "text"}, "always_on", "nobody", "all", 100_000, "metadata", {"n": "metadata"}),
    *("parquet", "snappy", "2026-01-02", "https://other.example.com"),
    [{"name": "other", "type": "stdout", "events": ["requests"]}],
)


def other_value(each: Setting, value: object) -> object:
    """Return a value that is valid for a setting and differs from the one that it has."""
    assert isinstance(each.check, Checker)
    for candidate in OTHERS:
        place = Place("here", Report(), {})
        found = place.attempt(each.check, candidate)
        if not place.report.problems and found is not None and found != value:
            return found
    raise AssertionError(f"no other value is known for {each.path}: add one to OTHERS")
