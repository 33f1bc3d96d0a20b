"""What is refused by a request's head, before its body is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.proxy.gateway_fakes import BaseModelsOf, server
from tests.upstreams.fleets import make_router
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.grants import Changes, EndUser
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.config.settings import PriceList, TenantRoutes
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import BudgetExceeded, EndUserBlocked, GatewayError, LedgerUnavailable, RateLimitExceeded
from twisted_vllm.http.headers import RequestHead
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.usage.pricing import PriceTable

NOW = 1_781_697_600.0
END_USER = b"x-litellm-end-user-id"


class FullDisk:
    """A ledger that cannot be written."""

    healthy = False


class Gate:
    """An accounting with one key that has an allowance.

    Attributes:
        limiter: what counts its requests.
        limited: the key, as the limiter knows it.
        index: the end users.
    """

    def __init__(self, allowance: Allowance, rows: Any = None) -> None:
        self.limiter = LocalLimiter()
        self.limited = Limited("key", "k", allowance)
        self.index = KeyIndex()
        self.accounting = Accounting(
            limiter=self.limiter,
            end_users=self.index,
            prices=PriceTable((), PriceList()),
            rows=rows,
            fail_closed=True,
            end_user_headers=[END_USER],
            now=lambda: NOW,
        )
        self._admission = Admission(
            authenticator=Authenticator(None, self.index),
            policy=RoutePolicy(TenantRoutes()),
            router=make_router((), server("default:8000")),
            base_models=BaseModelsOf(),
            path_aliases=True,
        )

    def check(
        self,
        end_user: bytes | None = None,
        method: bytes = b"POST",
        route: bytes = b"/v1/completions",
        principal: Principal | None = None,
    ) -> RequestContext:
        principal = principal or Principal(kind="key", name="k", limited=(self.limited,))
        context = RequestContext(Peer("192.0.2.1", False), 0.0)
        headers = [] if end_user is None else [(END_USER, end_user)]
        context.head = RequestHead(method, b"/vllm" + route, b"HTTP/1.1", headers)
        self.accounting.check(context, self._admission.authorize(principal, method, route))
        return context

    def admit(self, tokens: int = 1, cost: int = 1) -> None:
        self.limiter.admit((self.limited,), "", tokens, cost, NOW)


def use(gate: Gate) -> None:
    gate.admit(tokens=10, cost=10)


def nothing(gate: Gate) -> None:
    """The limit is 0."""


@pytest.mark.parametrize(
    ("allowance", "before", "error"),
    [
        (Allowance(rpm=0), nothing, RateLimitExceeded),
        (Allowance(rpm=1), use, RateLimitExceeded),
        (Allowance(tpm=10), use, RateLimitExceeded),
        (Allowance(parallel=1), use, RateLimitExceeded),
        (Allowance(max_budget=0), nothing, BudgetExceeded),
        (Allowance(max_budget=10), use, BudgetExceeded),
    ],
)
def test_a_limit_that_is_used_up_refuses_by_the_head(
    allowance: Allowance, before: Callable[[Gate], None], error: type[GatewayError]
) -> None:
    gate = Gate(allowance)
    before(gate)
    with pytest.raises(error):
        gate.check()


def test_a_look_counts_nothing() -> None:
    gate = Gate(Allowance(rpm=1, tpm=1, parallel=1, max_budget=1))
    for _ in range(5):
        gate.check()
    gate.admit()


def test_the_size_of_a_body_that_has_not_come_is_not_guessed() -> None:
    gate = Gate(Allowance(tpm=11, max_budget=11))
    use(gate)
    gate.check()


def test_limits_of_models_wait_for_the_model() -> None:
    gate = Gate(Allowance(model_rpm={"m": 0}, model_tpm={"m": 0}))
    gate.check()


def test_a_route_that_counts_for_nothing_is_not_refused() -> None:
    Gate(Allowance(rpm=0)).check(method=b"GET", route=b"/v1/models")


def test_a_preflight_learns_nothing_of_limits() -> None:
    Gate(Allowance(rpm=0), rows=FullDisk()).check(b"eve", b"OPTIONS", principal=PREFLIGHT)


def test_an_end_user_that_a_header_names_is_refused_by_the_head() -> None:
    gate = Gate(Allowance())
    users = {
        "eve": EndUser(Limited("end_user", "eve", Allowance()), blocked=True),
        "trudy": EndUser(Limited("end_user", "trudy", Allowance(rpm=0)), blocked=False),
        "alice": EndUser(Limited("end_user", "alice", Allowance(rpm=1)), blocked=False),
    }
    gate.index.apply(Changes(end_users=users))
    with pytest.raises(EndUserBlocked):
        gate.check(b"eve")
    with pytest.raises(RateLimitExceeded):
        gate.check(b"trudy")
    assert gate.check(b"alice").end_user == "alice"
    gate.check(b"unknown")
    gate.check()


def test_nothing_is_read_while_usage_cannot_be_written_down() -> None:
    with pytest.raises(LedgerUnavailable):
        Gate(Allowance(), rows=FullDisk()).check()
