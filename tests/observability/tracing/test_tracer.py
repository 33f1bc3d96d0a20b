"""The place of a request in a trace, and which requests are recorded."""

from __future__ import annotations

from typing import Any

import pytest

from twisted_vllm.auth.records import MASTER, Principal
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.http.headers import RequestHead
from twisted_vllm.observability.tracing.propagation import TRACEPARENT, TRACESTATE
from twisted_vllm.observability.tracing.sampling import ErrorAllowance, Sampler
from twisted_vllm.observability.tracing.tracer import SpanIds, Tracer, headers_for_server

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
KEY = Principal(kind="key", name="k", key_id="1")


class Bytes:
    """Random bytes that are not: each id is one more than the last."""

    def __init__(self) -> None:
        self.next = 0

    def __call__(self, size: int) -> bytes:
        made = b""
        for _ in range(size // 8):
            made += self.next.to_bytes(8, "big")
            self.next += 1
        return made


def tracer(sampler: str = "parentbased_traceidratio", ratio: float = 1.0, **options: Any) -> Tracer:
    trust: dict[str, str] = {
        "trust_incoming": options.pop("trust_incoming", "keys"),
        "trust_sampled": options.pop("trust_sampled", "administrators"),
    }
    settings: dict[str, Any] = {
        "propagates": True,
        "errors": ErrorAllowance(1),
        "refused": "keys",
        "gateway_routes": False,
        "is_own": lambda path: not path.startswith(b"/vllm"),
        **options,
    }
    return Tracer(Sampler.of(sampler, ratio, **trust), Bytes(), **settings)


def request(
    *headers: tuple[bytes, bytes], principal: Principal | None = KEY, target: bytes = b"/vllm/v1/models"
) -> Any:
    context = RequestContext(Peer("192.0.2.1", False), 10.0)
    context.head = RequestHead(b"POST", target, b"HTTP/1.1", list(headers))
    context.principal = principal
    return context


def traced(flags: str = "01", *, state: bytes = b"", principal: Principal | None = KEY) -> RequestContext:
    headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-{flags}".encode())]
    found: RequestContext = request(*headers, *([(b"tracestate", state)] if state else []), principal=principal)
    return found


def test_ids_are_never_zero_and_never_the_same() -> None:
    ids = SpanIds(Bytes())
    made = [ids.make() for _ in range(500)]
    assert len(set(made)) == 500
    assert "0" * 16 not in made
    assert {len(each) for each in made} == {16}


def test_a_request_without_a_trace_begins_one() -> None:
    context = request()
    trace = tracer().begin(context)
    assert context.trace is trace
    assert (len(trace.trace_id), len(trace.span_id), trace.parent_id, trace.sampled) == (32, 16, "", True)


def test_the_trace_of_a_caller_with_a_key_is_continued() -> None:
    trace = tracer().begin(traced(state=b"vendor=1"))
    assert (trace.trace_id, trace.parent_id, trace.state) == (TRACE, SPAN, b"vendor=1")
    assert trace.span_id != SPAN


@pytest.mark.parametrize(("trust", "principal"), [("keys", None), ("administrators", KEY), ("nobody", MASTER)])
def test_others_begin_a_trace_of_their_own(trust: str, principal: Principal | None) -> None:
    trace = tracer(trust_incoming=trust).begin(traced(principal=principal, state=b"vendor=1"))
    assert trace.trace_id != TRACE
    assert (trace.parent_id, trace.state) == ("", b"")


def test_a_tenant_who_asks_for_it_has_no_more_recorded_than_the_ratio() -> None:
    assert not tracer(ratio=0.0).begin(traced("01")).sampled


def test_a_tenant_cannot_choose_the_digits_by_which_the_ratio_goes() -> None:
    low = request((b"traceparent", f"00-{'0' * 31}1-{SPAN}-01".encode()))
    made = Tracer(
        Sampler.of("parentbased_traceidratio", 0.5, "keys", "administrators"),
        lambda size: b"\xff" * size,
        propagates=True,
        errors=None,
        refused="keys",
        gateway_routes=False,
        is_own=lambda path: False,
    )
    trace = made.begin(low)
    assert trace.trace_id == f"{'0' * 31}1"
    assert not trace.sampled


def test_a_tenant_cannot_hide_from_the_ratio() -> None:
    assert tracer(ratio=1.0).begin(traced("00")).sampled


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False)])
def test_an_administrator_decides(flags: str, sampled: bool) -> None:
    ratio = 0.0 if sampled else 1.0
    assert tracer(ratio=ratio).begin(traced(flags, principal=MASTER)).sampled is sampled


def test_each_attempt_has_an_id_that_its_server_is_told() -> None:
    made, context = tracer(), traced(state=b"vendor=1")
    seen = []
    for _ in range(2):
        trace = made.attempt(context)
        assert trace is not None
        said = dict(headers_for_server(trace))
        assert said[TRACESTATE] == b"vendor=1"
        seen.append(said[TRACEPARENT].decode())
        assert said[TRACEPARENT] == f"00-{TRACE}-{trace.attempt_id}-01".encode()
        assert trace.attempt_id != trace.span_id
    assert len(set(seen)) == 2


def test_servers_of_one_act_are_told_its_own_span() -> None:
    context = request()
    trace = tracer(ratio=0.0).act(context)
    assert trace is not None
    assert headers_for_server(trace) == [(TRACEPARENT, f"00-{trace.trace_id}-{trace.span_id}-00".encode())]


def test_servers_need_not_be_told() -> None:
    context = request()
    assert tracer(propagates=False).attempt(context) is None
    assert context.trace.attempt_id


def sent(outcome: str = "completed", status: int = 200, error: str = "", **options: Any) -> RequestContext:
    context: RequestContext = request(**options)
    context.sent, context.outcome, context.status, context.error_code = True, outcome, status, error
    context.ended = 11.0
    return context


@pytest.mark.parametrize(
    ("outcome", "status", "error", "recorded"),
    [
        ("completed", 200, "", False),
        ("completed", 400, "", False),
        ("completed", 500, "", True),
        ("upstream_failed", 502, "upstream_unreachable", True),
        ("upstream_failed", 200, "upstream_protocol_error", True),
        ("upstream_error", 200, "", True),
        ("failed", 500, "internal_error", True),
        ("client_disconnected", 0, "", False),
        ("revoked", 200, "", False),
        ("refused", 503, "server_busy", False),
        ("refused", 429, "rate_limit_exceeded", False),
    ],
)
def test_faults_are_recorded_although_they_were_not_sampled(
    outcome: str, status: int, error: str, recorded: bool
) -> None:
    made, context = tracer(ratio=0.0), sent(outcome, status, error)
    made.attempt(context)
    assert made.records(context) is recorded


def test_a_dead_server_does_not_flood_the_collector() -> None:
    made = tracer(ratio=0.0)
    recorded = []
    for _ in range(5):
        context = sent("upstream_failed", 502)
        made.attempt(context)
        recorded.append(made.records(context))
    assert recorded == [True, False, False, False, False]


def test_faults_are_left_out_if_the_settings_say_so() -> None:
    made, context = tracer(ratio=0.0, errors=None), sent("failed", 500)
    made.attempt(context)
    assert not made.records(context)


@pytest.mark.parametrize(
    ("refused", "principal", "recorded"),
    [("keys", KEY, True), ("keys", None, False), ("all", None, True), ("nobody", KEY, False), ("nobody", None, False)],
)
def test_refused_requests_are_recorded_by_who_asks(refused: str, principal: Principal | None, recorded: bool) -> None:
    made, context = tracer(refused=refused), request(principal=principal)
    context.outcome, context.status = "refused", 429
    made.ended(context)
    assert (context.trace is not None) is recorded
    assert made.records(context) is recorded


@pytest.mark.parametrize(
    ("target", "principal", "recorded"),
    [
        (b"/key/info?key=x", MASTER, True),
        (b"/key/info", None, False),
        (b"/health/readiness", MASTER, False),
        (b"/metrics", MASTER, False),
    ],
)
def test_the_admin_api_is_recorded_if_the_settings_say_so(
    target: bytes, principal: Principal | None, recorded: bool
) -> None:
    context = request(target=target, principal=principal)
    made = tracer(gateway_routes=True)
    made.ended(context)
    assert made.records(context) is recorded
    other = request(target=target, principal=principal)
    tracer().ended(other)
    assert other.trace is None
