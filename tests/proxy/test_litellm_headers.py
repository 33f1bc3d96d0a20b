"""LiteLLM's headers of a response."""

from __future__ import annotations

from typing import Any

import pytest

from twisted_vllm.auth.records import Principal
from twisted_vllm.context import FailedAttempt, Peer, RequestContext
from twisted_vllm.proxy.litellm_headers import MAX_KNOWN, MAX_NAME, LitellmHeaders
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter

LIMITS = Allowance(rpm=60, max_budget=25 * 10**11)


def context(**changes: Any) -> RequestContext:
    made = RequestContext(Peer("192.0.2.1", False), 10.0)
    made.request_id = b"id-1"
    made.principal = Principal("key", "ada", key_id="k1", limited=(Limited("key", "k1", LIMITS),))
    made.model = "qwen"
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_an_answer_names_its_call_its_model_and_the_limits_of_its_key() -> None:
    lines = LitellmHeaders().lines(context(model_id="entry-1"))
    assert lines.split(b"\r\n") == [
        b"x-litellm-call-id: id-1",
        b"x-litellm-model-id: entry-1",
        b"x-litellm-model-group: qwen",
        b"x-litellm-key-rpm-limit: 60",
        b"x-litellm-key-max-budget: 2.5",
        b"",
    ]


def test_the_limits_of_others_are_not_shown() -> None:
    principal = Principal("key", "ada", key_id="k1", limited=(Limited("team", "t1", LIMITS),))
    assert b"limit" not in LitellmHeaders().lines(context(principal=principal))


def test_new_limits_are_shown_at_once() -> None:
    headers = LitellmHeaders()
    headers.lines(context())
    other = Principal("key", "ada", key_id="k1", limited=(Limited("key", "k1", Allowance(tpm=5)),))
    assert b"x-litellm-key-tpm-limit: 5\r\n" in headers.lines(context(principal=other))


@pytest.mark.parametrize("model", ["a\r\nx-evil: 1", "\x00", "ü", "m" * (MAX_NAME + 1), ""])
def test_a_name_that_is_no_header_is_left_out(model: str) -> None:
    lines = LitellmHeaders().lines(context(model=model))
    assert b"model-group" not in lines and b"evil" not in lines


def test_a_stranger_s_call_has_its_id_and_further_attempts_are_counted() -> None:
    assert LitellmHeaders().lines(context(principal=None)) == b"x-litellm-call-id: id-1\r\n"
    tried = context(attempts=(FailedAttempt("gpu-1", "status_503"),))
    assert LitellmHeaders().lines(tried).endswith(b"x-litellm-attempted-retries: 1\r\n")
    # `for_client` names the model that answered instead
    assert b"model-group" not in LitellmHeaders().lines(context(fallback="other"))


def test_models_of_any_number_take_bounded_memory() -> None:
    headers = LitellmHeaders()
    for number in range(MAX_KNOWN + 10):
        headers.lines(context(model=f"m{number}"))
    assert len(headers) == MAX_KNOWN


def test_keys_of_any_number_with_the_same_limits_share_their_lines() -> None:
    headers = LitellmHeaders()
    for number in range(MAX_KNOWN + 10):
        limited = (Limited("team", "t1", Allowance(rpm=1)), Limited("key", f"k{number}", LIMITS))
        headers.lines(context(principal=Principal("key", "ada", key_id=f"k{number}", limited=limited)))
        headers.lines(context(principal=Principal("key", "ada", key_id=f"k{number}")))
    assert len(headers) == 2


def admitted(allowance: Allowance, model: str = "qwen", **changes: Any) -> RequestContext:
    """Return the context of the second request of a key, whose first cost 1.5 dollars."""
    limiter = LocalLimiter()
    limited = (Limited("team", "t1", Allowance(max_budget=9 * 10**12)), Limited("key", "k1", allowance))
    limiter.settle(limiter.admit(limited, model, 10, 10**12, 100.0), 10, 15 * 10**11, 100.0)
    reservation = limiter.admit(limited, model, 10, 10**12, 101.0)
    return context(
        model=model, principal=Principal("key", "ada", key_id="k1", limited=limited), reservation=reservation, **changes
    )


def test_a_key_with_a_budget_is_told_what_it_had_spent_before() -> None:
    assert b"x-litellm-key-spend: 1.5\r\n" in LitellmHeaders().lines(admitted(LIMITS))
    # that of its team is not shown
    assert b"spend" not in LitellmHeaders().lines(admitted(Allowance(rpm=60)))


def test_a_key_with_limits_of_a_model_is_told_what_is_left() -> None:
    allowance = Allowance(model_rpm={"org/qwen:7b": 10}, model_tpm={"org/qwen:7b": 50}, tpm=1000)
    lines = LitellmHeaders().lines(admitted(allowance, "org/qwen:7b"))
    assert b"x-litellm-key-remaining-requests-org-qwen-7b: 8\r\n" in lines
    assert b"x-litellm-key-remaining-tokens-org-qwen-7b: 30\r\n" in lines
    assert b"remaining" not in LitellmHeaders().lines(admitted(allowance, "other"))
    odd = "a b\x7f"
    assert b"remaining" not in LitellmHeaders().lines(admitted(Allowance(model_rpm={odd: 10}), odd))
