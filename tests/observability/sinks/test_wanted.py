"""Which requests a sink is told of."""

from __future__ import annotations

from typing import Any

import pytest

from tests.observability.sinks.requests import made
from tests.observability.test_request_records import request
from twisted_vllm.config.sinks import SinkSettings
from twisted_vllm.context import RequestContext
from twisted_vllm.observability.request_event import is_success
from twisted_vllm.observability.sinks.wanted import Names, make_filter


def wants(context: RequestContext, **settings: Any) -> bool:
    sink = SinkSettings(name="a", type="stdout", **settings)
    found = make_filter(sink, lambda path: path.startswith(b"/key"))
    return found is not None and found(context)


def ended(context: RequestContext, status: int = 200, outcome: str = "completed") -> RequestContext:
    context.status, context.outcome = status, outcome
    return context


def test_log_lines_alone_need_no_request() -> None:
    assert make_filter(SinkSettings(name="a", type="stdout", events=("log",)), lambda path: False) is None


@pytest.mark.parametrize(
    ("status", "outcome", "success"),
    [
        (200, "completed", True),
        (304, "completed", True),
        (404, "completed", False),
        (200, "client_disconnected", False),
        (502, "upstream_failed", False),
        (0, "failed", False),
    ],
)
def test_a_success_is_answered_completely_below_400(status: int, outcome: str, success: bool) -> None:
    assert is_success(status, outcome) is success
    context = ended(made(), status, outcome)
    assert wants(context, events=("requests",))
    assert wants(context, events=("successes", "failures"))
    assert wants(context, events=("successes",)) is success
    assert wants(context, events=("failures",)) is not success


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"models": ("qwen",)}, True),
        ({"models": ("q*n",)}, True),
        ({"models": ("llama*",)}, False),
        ({"keys": ("team-a",)}, True),
        ({"keys": ("team-*",)}, True),
        ({"keys": ("other",)}, False),
        ({"teams": ("*",)}, False),
    ],
)
def test_patterns_choose_models_keys_and_teams(settings: dict[str, Any], wanted: bool) -> None:
    assert wants(ended(made()), **settings) is wanted


def test_a_key_is_known_by_the_beginning_of_its_hash() -> None:
    context = ended(made())
    assert context.principal is not None
    prefix = context.principal.hash_prefix
    assert wants(context, keys=(prefix[:8],))
    assert not wants(context, keys=(prefix[:7],))


def test_strangers_are_not_told_of_unless_all_are() -> None:
    context = ended(request(), 401, "refused")
    context.principal = None
    context.authorization = None
    assert not wants(context)
    assert wants(context, refused="all")


def test_refused_requests_of_keys_are_told_unless_nobodys_are() -> None:
    context = ended(made(sent=False), 429, "refused")
    assert wants(context)
    assert wants(context, refused="all")
    assert not wants(context, refused="nobody")


def test_names_with_wildcards_are_remembered_within_bounds() -> None:
    names = Names(("a*", "b"))
    assert [names.has(name) for name in ("abc", "b", "c", "a" * 10_000, "c")] == [True, True, False, True, False]
    for number in range(5000):
        names.has(f"x{number}")
    assert len(names._known) <= 1024
