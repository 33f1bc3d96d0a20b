"""Limits: which one a server gets of those for all servers, of its entries and its own; and what is refused."""

from __future__ import annotations

import pytest

from tests.config.config_harness import BASE, Loader, Refusal, default_server
from twisted_vllm.config.describe import describe
from twisted_vllm.config.settings import Settings

ENTRIES = """
model_list:
  - {model_name: a, litellm_params: {model: hosted_vllm/a, api_base: "http://one", max_parallel_requests: 8}}
  - model_name: b
    litellm_params: {model: hosted_vllm/b, api_base: "http://one/v1", api_key: k, max_parallel_requests: 4}
  - {model_name: c, litellm_params: {model: hosted_vllm/c, api_base: "http://two"}}
"""


def server_limits(settings: Settings) -> dict[str, tuple[int | None, int]]:
    return {
        entry.model_name: (entry.server.max_concurrent_requests, entry.server.max_queued_requests)
        for entry in settings.models
    }


def test_by_default_clients_are_limited_and_servers_are_not(load_text: Loader) -> None:
    settings = load_text("", BASE)
    limits = settings.limits
    assert (limits.max_connections, limits.max_concurrent_requests, limits.max_queued_requests) == (10_000, None, 100)
    server = default_server(settings)
    assert (server.max_concurrent_requests, server.max_queued_requests, server.timeouts.queue) == (None, 100, 30)


@pytest.mark.parametrize(("text", "share"), [("0.5", 0.5), ("1", 1.0), ("os.environ/SHARE", 0.1)])
def test_the_share_of_one_address_is_a_part_of_the_whole(
    load_text: Loader, monkeypatch: pytest.MonkeyPatch, text: str, share: float
) -> None:
    monkeypatch.setenv("SHARE", "0.1")
    settings = load_text(f"passthrough: {{limits: {{max_connections_share: {text}}}}}", {**BASE, "SHARE": "0.1"})
    assert settings.limits.max_connections_share == share
    assert load_text("", BASE).limits.max_connections_share == 0.25


@pytest.mark.parametrize(
    ("limits", "warning"),
    [
        ("{max_held_total_bytes: 100000000}", "max_held_total_bytes: does not bound the memory of bodies"),
        ("{max_held_body_bytes: 268435457}", "at least twice max_held_body_bytes (536870914)"),
        ("{max_held_bytes_per_key: 536870913}", "max_held_bytes_per_key: is more than max_held_total_bytes"),
        ("{max_reports_per_key: 5}", "max_reports_per_key: is more than max_reports"),
    ],
)
def test_a_limit_that_another_makes_void_is_warned_of(load_text: Loader, limits: str, warning: str) -> None:
    settings = load_text(f"passthrough: {{limits: {limits}}}", BASE)
    assert [warning in line for line in settings.warnings] == [True]
    assert any(line.startswith("warning:") and warning in line for line in describe(settings))


def test_limits_at_the_edge_are_not_warned_of(load_text: Loader) -> None:
    limits = "{max_held_body_bytes: 268435456, max_held_bytes_per_key: 536870912, max_reports_per_key: 4}"
    assert load_text(f"passthrough: {{limits: {limits}}}", BASE).warnings == ()


def test_a_limit_for_all_servers_holds_for_each(load_text: Loader) -> None:
    settings = load_text(
        "passthrough: {limits: {max_concurrent_requests: 5, max_queued_requests: 0}, timeouts: {queue: null}}", BASE
    )
    server = default_server(settings)
    assert (server.max_concurrent_requests, server.max_queued_requests, server.timeouts.queue) == (5, 0, None)


def test_a_servers_own_limit_wins_over_its_entries_and_an_entrys_over_that_for_all(load_text: Loader) -> None:
    settings = load_text(
        ENTRIES
        + """
passthrough:
  limits: {max_concurrent_requests: 50}
  servers:
    http://one: {max_concurrent_requests: null, timeouts: {queue: 5}}
"""
    )
    assert server_limits(settings) == {"a": (None, 100), "b": (None, 100), "c": (50, 100)}
    assert settings.models[0].server.timeouts.queue == 5


def test_entries_of_one_server_share_the_smallest_and_the_operator_is_told(load_text: Loader) -> None:
    settings = load_text(ENTRIES)
    assert server_limits(settings) == {"a": (4, 100), "b": (4, 100), "c": (None, 100)}
    (warning,) = settings.warnings
    assert "model_list[1].litellm_params.max_parallel_requests" in warning
    assert "the smallest is used for both" in warning


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limits: {max_connections: 0}", "limits.max_connections: must be 1 or more"),
        ("limits: {max_connection: 5}", "did you mean 'max_connections'?"),
        ("limits: {max_concurrent_requests: 0}", "limits.max_concurrent_requests: must be 1 or more"),
        ("limits: {max_concurrent_requests: many}", "must be a whole number, 1 or more, not text"),
        ("limits: {max_queued_requests: null}", "must be a whole number, 0 or more, not nothing"),
        ("limits: {max_queued_request: 5}", "did you mean 'max_queued_requests'?"),
        ("limits: {max_connections_share: 0}", "limits.max_connections_share: must be above 0 and at most 1"),
        ("limits: {max_connections_share: 1.5}", "limits.max_connections_share: must be above 0 and at most 1"),
        ("limits: {max_connections_share: half}", "must be a number above 0, at most 1, not text"),
        ("limits: {min_client_rate: 0}", "limits.min_client_rate: must be 1 or more"),
        ("timeouts: {queue: 0}", "timeouts.queue: must be a number of seconds above 0"),
        ("servers: {'http://gpu:8000': {max_concurrent_request: 5}}", "did you mean 'max_concurrent_requests'?"),
        ("servers: {'http://gpu:8000': {max_connections: 5}}", "move it to passthrough.limits"),
        ("drain_delay: -1", "drain_delay: must be a number of seconds 0 or more"),
        ("drain_dely: 1", "did you mean 'drain_delay'?"),
    ],
)
def test_what_is_mistyped_is_refused_by_its_name(problems_of: Refusal, text: str, words: str) -> None:
    assert words in "\n".join(problems_of(f"passthrough: {{{text}}}"))


def test_an_entrys_limit_that_is_no_number_is_refused(problems_of: Refusal) -> None:
    text = "model_list: [{model_name: a, litellm_params: {model: hosted_vllm/a, max_parallel_requests: x}}]"
    assert "model_list[0].litellm_params.max_parallel_requests" in "\n".join(problems_of(text))


def test_what_differs_is_described(load_text: Loader) -> None:
    settings = load_text(
        "passthrough: {limits: {max_connections: null, max_concurrent_requests: 5}, drain_delay: 3,"
        " servers: {'http://gpu:8000': {max_concurrent_requests: 9}}}",
        BASE,
    )
    lines = describe(settings)
    assert "drain:          30 s, after 3 s of serving on" in lines
    assert "limit:          max_connections none (default 10000)" in lines
    assert "limit:          max_concurrent_requests 5 (default none)" in lines
    assert "limit:          max_concurrent_requests 9 for gpu:8000 (elsewhere 5)" in lines


def test_running_requests_are_left_alone_unless_it_is_said(load_text: Loader, problems_of: Refusal) -> None:
    assert load_text("", BASE).revoke_running is False
    revoking = load_text("passthrough: {revoke_running: true}", BASE)
    assert revoking.revoke_running is True
    assert "revoking:       running requests end when their key is not valid any more" in describe(revoking)
    assert "passthrough.revoke_running" in "\n".join(problems_of("passthrough: {revoke_running: soon}"))
