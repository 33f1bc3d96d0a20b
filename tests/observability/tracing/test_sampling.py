"""Which traces are recorded, and that no caller can have more."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.records import ANONYMOUS, MASTER, PREFLIGHT, Principal
from twisted_vllm.config.tracing import SAMPLERS
from twisted_vllm.observability.tracing.sampling import ErrorAllowance, Sampler, is_probe, trusts

KEY = Principal(kind="key", name="k", key_id="1")
MANAGER = Principal(kind="key", name="m", key_id="2", role="proxy_admin")


@pytest.mark.parametrize(
    ("who", "trusted"),
    [
        ("everybody", {None, PREFLIGHT, ANONYMOUS, KEY, MANAGER, MASTER}),
        ("keys", {ANONYMOUS, KEY, MANAGER, MASTER}),
        ("administrators", {MANAGER, MASTER}),
        ("nobody", set()),
    ],
)
def test_who_is_trusted(who: str, trusted: set[Principal | None]) -> None:
    everybody = (None, PREFLIGHT, ANONYMOUS, KEY, MANAGER, MASTER)
    assert {each for each in everybody if trusts(who, each)} == trusted


@pytest.mark.parametrize(
    ("name", "ratio", "share"),
    [
        ("always_on", 0.0, 1.0),
        ("parentbased_always_on", 0.0, 1.0),
        ("always_off", 1.0, 0.0),
        ("parentbased_always_off", 1.0, 0.0),
        ("traceidratio", 0.25, 0.25),
        ("parentbased_traceidratio", 0.0, 0.0),
        ("parentbased_traceidratio", 1.0, 1.0),
    ],
)
def test_a_sampler_takes_its_share(name: str, ratio: float, share: float) -> None:
    assert name in SAMPLERS
    sampler = Sampler.of(name, ratio, "keys", "administrators")
    assert sampler.parent_based is name.startswith("parentbased_")
    numbers = random.Random(7)
    taken = sum(sampler.takes(f"{numbers.getrandbits(128):032x}") for _ in range(4_000))
    assert abs(taken / 4_000 - share) < 0.03


@given(st.integers(0, 2**128 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_has_all_of_a_smaller_one(number: int, one: float, other: float) -> None:
    """So the gateway and the servers behind it record the same traces."""
    low, high = sorted((one, other))
    if Sampler.of("traceidratio", low, "keys", "keys").takes(f"{number:032x}"):
        assert Sampler.of("traceidratio", high, "keys", "keys").takes(f"{number:032x}")


@pytest.mark.parametrize(
    ("name", "principal", "obeyed"),
    [
        ("parentbased_traceidratio", MASTER, True),
        ("parentbased_traceidratio", KEY, False),
        ("traceidratio", MASTER, False),
    ],
)
def test_only_a_trusted_caller_decides(name: str, principal: Principal, obeyed: bool) -> None:
    sampler = Sampler.of(name, 0.01, "keys", "administrators")
    assert sampler.continues(principal)
    assert sampler.obeys(principal) is obeyed


def test_failures_are_recorded_up_to_a_rate() -> None:
    allowance = ErrorAllowance(2)
    assert [allowance.take(now) for now in (10.0, 10.4, 10.9, 11.0, 11.1, 11.2)] == [True, True, False] * 2


@pytest.mark.parametrize("target", [b"/health", b"/health/readiness", b"/metrics", b"/metrics/vllm?x=1"])
def test_probes_are_known(target: bytes) -> None:
    assert is_probe(target)
    assert not is_probe(b"/key/info")
    assert not is_probe(b"/healthy")
