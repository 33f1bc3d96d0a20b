"""Stateful test: after any interleaving of requests and changes, nothing stays reserved."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.proxy.gateway_fakes import BaseModelsOf, server
from tests.upstreams.fleets import make_router
from twisted_vllm.api_routes import classify
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.grants import Changes, EndUser, KeyGrant, UserGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.config.settings import PriceList, TenantRoutes
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.errors import BudgetExceeded, EndUserBlocked, LedgerUnavailable, RateLimitExceeded
from twisted_vllm.http.headers import RequestHead, ResponseHead
from twisted_vllm.money import PICODOLLARS
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.usage.pricing import PriceTable

NOON = 1_781_697_600.0
TOKEN = "ab" * 32
PRICES = PriceList(input_cost_per_token=Decimal(1), output_cost_per_token=Decimal(1))

few = st.none() | st.integers(1, 12) | st.just(0)
allowances = st.builds(
    Allowance,
    rpm=few,
    tpm=st.none() | st.integers(0, 900),
    parallel=few,
    model_rpm=st.dictionaries(st.just("m"), st.integers(0, 12), max_size=1),
    model_tpm=st.dictionaries(st.just("m"), st.integers(0, 900), max_size=1),
    max_budget=st.none() | st.integers(0, 900).map(lambda dollars: dollars * PICODOLLARS),
    soft_budget=st.none() | st.integers(0, 100).map(lambda dollars: dollars * PICODOLLARS),
    budget_duration=st.sampled_from([None, "1h"]),
)
#: how a request ends: its outcome, whether it was sent, the server's status, and whether its whole body arrived
endings = st.tuples(
    st.sampled_from(
        ["completed", "client_disconnected", "upstream_failed", "upstream_error", "failed", "refused", "revoked"]
    ),
    st.booleans(),
    st.sampled_from([0, 200, 429, 500]),
    st.booleans(),
)
choices = st.one_of(
    st.integers(0, 50).map(
        lambda tokens: json.dumps({"usage": {"prompt_tokens": tokens, "completion_tokens": tokens}}).encode()
    ),
    st.binary(max_size=30),
)


class Rows:
    """A sink that discards rows, or fails."""

    healthy = True

    def append(self, row: object) -> None:
        pass

    def flush(self) -> None:
        pass


class Requests(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOON
        self.limiter = LocalLimiter()
        self.rows = Rows()
        self.index = KeyIndex()
        self.accounting = Accounting(
            limiter=self.limiter,
            end_users=self.index,
            prices=PriceTable((), PRICES),
            rows=self.rows,
            fail_closed=True,
            now=lambda: self.now,
        )
        self.admission = Admission(
            authenticator=Authenticator(None, self.index),
            policy=RoutePolicy(TenantRoutes()),
            router=make_router((), server()),
            base_models=BaseModelsOf(),
            path_aliases=True,
            inject_usage=True,
        )
        self.running: list[RequestContext] = []
        self.change_key(UNLIMITED, None)

    def change_key(self, allowance: Allowance, user_id: str | None) -> None:
        grant = KeyGrant(token=TOKEN, key_id="k1", name="k", user_id=user_id, allowance=allowance)
        self.index.apply(Changes(keys={TOKEN: grant}))

    @initialize(allowance=allowances)
    def the_key_has_limits(self, allowance: Allowance) -> None:
        self.change_key(allowance, "ada")

    @rule(
        who=st.sampled_from(["key", "user", "end_user", "budget"]),
        allowance=allowances | st.just(UNLIMITED),
        gone=st.booleans(),
    )
    def a_subject_changes(self, who: str, allowance: Allowance, gone: bool) -> None:
        if who == "key":
            self.change_key(allowance, None if gone else "ada")
        elif who == "user":
            self.index.apply(Changes(users={"ada": None if gone else UserGrant(allowance=allowance)}))
        elif who == "end_user":
            eve = EndUser(Limited("end_user", "eve", allowance), blocked=gone)
            self.index.apply(Changes(end_users={"eve": eve}))
        else:
            self.limiter.budget_forgotten("key", "k1")

    @rule(seconds=st.sampled_from([0.1, 1.0, 59.9, 61.0, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        path=st.sampled_from([b"/v1/chat/completions", b"/v1/embeddings", b"/v1/models"]),
        model=st.just({"model": "m"}),
        most=st.integers(0, 30),
        named=st.sampled_from([{}, {"user": "eve"}, {"user": "bob"}]),
        stream=st.booleans(),
        written=st.sampled_from([True] * 9 + [False]),
        count=st.integers(1, 5),
    )
    def a_request_comes(
        self,
        path: bytes,
        model: dict[str, str],
        most: int,
        named: dict[str, str],
        stream: bool,
        written: bool,
        count: int,
    ) -> None:
        self.rows.healthy = written
        for _ in range(count):
            self.ask(path, {**model, **named, "max_tokens": most, "stream": stream})

    def ask(self, path: bytes, fields: dict[str, Any]) -> None:
        found = self.index.find(TOKEN)
        assert found is not None
        body = json.dumps(fields).encode()
        context = RequestContext(Peer("192.0.2.1", False), self.now)
        context.head = RequestHead(b"POST", path, b"HTTP/1.1", [(b"Content-Type", b"application/json")])
        context.head.length = len(body)
        authorization = context.authorization = self.admission.authorize(found.principal, b"POST", path)
        admitted = self.admission.admit(authorization, context.head.first, body)
        before = self.held()
        try:
            reserved = self.accounting.open(context, authorization, admitted)
        except (RateLimitExceeded, BudgetExceeded, EndUserBlocked, LedgerUnavailable):
            # less money is reserved where another period has begun
            assert self.held() <= before, "what was refused holds something"
            assert self.held()[0] == before[0]
            return
        assert reserved is None
        assert classify(b"POST", path).takes_model or self.held() == before
        self.running.append(context)

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0),
        ending=endings,
        answer=choices,
        kind=st.sampled_from([b"application/json", b"text/event-stream"]),
    )
    def a_request_ends(self, which: int, ending: tuple[str, bool, int, bool], answer: bytes, kind: bytes) -> None:
        context = self.running.pop(which % len(self.running))
        outcome, sent, status, whole = ending
        meter = context.meter
        if sent and status and meter is not None:
            meter.start(ResponseHead(status, b"", [(b"Content-Type", kind)]))
            meter.feed(answer)
            if outcome == "completed":
                meter.finish(b"")
        self.end(context, outcome, sent, whole)

    def end(self, context: RequestContext, outcome: str, sent: bool, whole: bool) -> None:
        context.outcome, context.sent = outcome, sent
        context.finish(self.now, answered=False, drained=False, bytes_in=0, bytes_out=0, body_complete=whole)
        self.accounting.finished(context)

    def held(self) -> tuple[int, int]:
        return self.limiter.in_flight, self.limiter.reserved

    def teardown(self) -> None:
        for context in self.running:
            self.end(context, "client_disconnected", True, True)
        in_flight, reserved = self.held()
        assert in_flight == 0
        assert reserved == 0
        every = Allowance(rpm=1, tpm=1, model_rpm={"m": 1}, model_tpm={"m": 1})
        for kind, id in (("key", "k1"), ("user", "ada"), ("end_user", "eve")):
            used = self.limiter.used(Limited(kind, id, every), "m", self.now)
            assert len(used) == 4
            assert min(used.values()) >= 0


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
