"""The ledger row of a finished request."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from tests.proxy.gateway_fakes import BaseModelsOf, server
from tests.upstreams.fleets import make_router
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.grants import Changes, KeyGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import Principal
from twisted_vllm.config.settings import PriceList, TenantRoutes
from twisted_vllm.context import Peer, RequestContext
from twisted_vllm.http.headers import RequestHead, ResponseHead
from twisted_vllm.lifecycle import Lifecycle
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.tracing.tracer import Trace
from twisted_vllm.proxy.accounting import MAX_PRICINGS, Accounting
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.ledger import TEXT_LIMIT, LedgerRecorder
from twisted_vllm.proxy.serving import LONGEST_NAME
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.usage.pricing import PriceTable
from twisted_vllm.usage.records import Payer, RowDetails, Target, UsageRow, details_of, refer, target_of
from twisted_vllm.usage.spool.format import encode_rows

#: when requests begin, and when they are over, in Unix seconds
BEGAN, OVER = 1_764_072_000.25, 1_764_072_001.75
OWN_ID = b"69259a40" + b"0a" * 12
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
#: the most bytes of a row in the spool, with one of `usage_headers`, tags and metadata
MOST_ROW_BYTES = 20_000
CHAT = b"/vllm/v1/chat/completions"
KEY = "ab" * 32


class Ledger:
    """Accounting for one key, with the rows in a list."""

    def __init__(self, prices: PriceList | None = None, usage_headers: tuple[bytes, ...] = (), **settings: Any) -> None:
        self.kept: list[UsageRow] = []
        self.healthy = True
        self.index = KeyIndex()
        grant = KeyGrant(token=KEY, key_id="k1", name="ada's", user_id="ada", team_id="red", tags=("x",))
        self.index.apply(Changes(keys={KEY: grant}))
        self.accounting = Accounting(
            limiter=LocalLimiter(),
            end_users=self.index,
            prices=PriceTable((), prices or PriceList()),
            rows=self,
            **settings,
        )
        self.recorder = LedgerRecorder(
            self,
            ClientText(Redactor()),
            lambda started: b"%08x" % int(started) + b"0b" * 12,
            usage_headers=usage_headers,
        )
        self.admission = Admission(
            authenticator=Authenticator(None, self.index),
            policy=RoutePolicy(TenantRoutes()),
            router=make_router((), server()),
            base_models=BaseModelsOf(),
            path_aliases=True,
        )

    def append(self, row: UsageRow) -> None:
        self.kept.append(row)

    def flush(self) -> None:
        """Do nothing."""

    def principal(self) -> Principal:
        found = self.index.find(KEY)
        assert found is not None
        return found.principal

    def serve(
        self,
        *,
        about: Callable[[RequestContext], None] = lambda _: None,
        uri: bytes = CHAT,
        method: bytes = b"POST",
        model: str = "m",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        outcome: str = "completed",
        sent: bool = True,
        answered: int = 200,
        kind: bytes = b"application/json",
        meanwhile: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> UsageRow | None:
        """Serve a request to its end; return its row. `meanwhile` is called while it runs, `about` before it ends."""
        body = json.dumps({"model": model, **fields}).encode()
        context = RequestContext(Peer("192.0.2.1", False), BEGAN)
        context.head = RequestHead(method, uri, b"HTTP/1.1", [(b"Content-Type", b"application/json"), *headers])
        context.head.length = len(body)
        context.request_id = context.head.first.get(b"x-request-id", OWN_ID)
        context.first_byte = BEGAN + 0.5
        principal = context.principal = self.principal()
        authorization = context.authorization = self.admission.authorize(principal, method, uri.removeprefix(b"/vllm"))
        admitted = self.admission.admit(authorization, context.head.first, body)
        assert self.accounting.open(context, authorization, admitted) is None
        meanwhile()
        meter = context.meter
        assert meter is not None
        meter.start(ResponseHead(answered, b"OK", [(b"Content-Type", kind)]))
        meter.finish(ANSWER)
        destination = admitted.serving.group.destinations[0]
        context.model, context.server, context.sent = admitted.model, destination.server, sent
        context.outcome, context.status = outcome, 200
        about(context)
        context.finish(
            OVER, answered=True, drained=False, bytes_in=len(body), bytes_out=len(ANSWER), body_complete=True
        )
        Lifecycle([self.accounting, self.recorder]).finished(context)
        return self.kept.pop() if self.kept else None


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_a_row_has_the_payer_the_target_and_the_usage(ledger: Ledger) -> None:
    assert ledger.serve() == UsageRow(
        OWN_ID.decode(),
        1_764_072_000_250_000,
        refer(Payer("key", "k1", KEY[:8], "ada's", "ada", "red", ("x",))),
        refer(Target("m", server().name, "/v1/chat/completions", "POST")),
        status=200,
        outcome="completed",
        prompt_tokens=3,
        completion_tokens=4,
        total_tokens=7,
        first_byte_us=500_000,
        total_us=1_500_000,
        bytes_in=len(b'{"model": "m"}'),
        bytes_out=len(ANSWER),
    )


class Gathered:
    """What is gathered of a prompt and an answer."""

    def start(self, head: ResponseHead) -> None:
        """Do nothing."""

    def feed(self, data: bytes) -> None:
        """Do nothing."""


def test_what_few_requests_have_is_one_text(ledger: Ledger) -> None:
    def about(context: RequestContext) -> None:
        context.add_wait(0.0015)
        context.fallback = "llama"

    row, usual = ledger.serve(about=about), ledger.serve()
    assert row is not None and usual is not None
    assert details_of(row.details) == RowDetails(1_500, "llama")
    assert usual.details == ""


@pytest.mark.parametrize(("sampled", "details"), [(True, '{"trace_id":"%s"}' % ("ab" * 16)), (False, "")])
def test_a_row_names_its_trace_if_that_is_recorded(ledger: Ledger, sampled: bool, details: str) -> None:
    def about(context: RequestContext) -> None:
        context.trace = Trace("ab" * 16, "cd" * 8, "", b"", sampled=sampled)

    row = ledger.serve(about=about)
    assert row is not None and row.details == details


@pytest.mark.parametrize("headers", [(), ((b"x-request-id", b"mine"),)])
def test_what_is_gathered_of_a_request_is_told_its_row(
    ledger: Ledger, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    contexts: list[RequestContext] = []

    def about(context: RequestContext) -> None:
        context.contents = Gathered()
        contexts.append(context)

    row = ledger.serve(about=about, headers=headers)
    assert row is not None and contexts[0].row_id == row.id != "mine"
    ledger.serve(about=contexts.append)
    assert contexts[1].row_id == ""


def test_equal_requests_share_their_target(ledger: Ledger) -> None:
    first, second = ledger.serve(), ledger.serve()
    assert first is not None and second is not None
    assert first.target is second.target


def test_the_cache_of_shared_targets_is_bounded(ledger: Ledger) -> None:
    for number in range(MAX_PRICINGS + 10):
        row = ledger.serve(model=f"m{number}")
        assert row is not None and target_of(row.target).model == f"m{number}"
    assert ledger.accounting.pricings == MAX_PRICINGS


def test_long_names_are_not_cached(ledger: Ledger) -> None:
    assert ledger.serve(model="m" * 1_000) is not None
    assert ledger.accounting.pricings == 0


@pytest.mark.parametrize("text", ["\x01", "\U0001f600", '"', "\u2028"])
def test_a_row_takes_bounded_bytes_on_the_disk_whatever_a_caller_sends(text: str) -> None:
    ledger = Ledger(usage_headers=(b"x-tags",), end_user_headers=(b"x-user",))
    long = text.encode("utf-8") * 4_000
    tags = b",".join(text.encode("utf-8") * 200 + b"%d" % number for number in range(100))
    metadata = json.dumps({"a": text * 300}).encode()
    named = (
        *((b"x-request-id", b'"' * 128), (b"x-tags", long), (b"x-user", long)),
        *((b"x-litellm-tags", tags), (b"x-litellm-spend-logs-metadata", metadata)),
    )
    model = text if text.isprintable() else "m"
    # as it is spelled in JSON
    longest = model * (LONGEST_NAME // (len(json.dumps(model)) - 2))
    row = ledger.serve(model=longest, headers=named, user=text * 100_000)
    assert row is not None
    size = len(encode_rows([row]))
    print(f"{size} bytes")
    assert size < MOST_ROW_BYTES


@pytest.mark.parametrize(
    "asked", [{"model": "n"}, {"uri": b"/vllm/v1/completions"}, {"uri": b"/vllm/v1/models", "method": b"GET"}]
)
def test_different_requests_share_no_target(ledger: Ledger, asked: Any) -> None:
    first, second = ledger.serve(), ledger.serve(**asked)
    assert first is not None and second is not None
    assert first.target != second.target


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, b"application/json"), (404, b"text/event-stream; charset=utf-8"), (500, b"application/json")],
)
def test_an_error_uses_nothing_whatever_its_body(ledger: Ledger, status: int, kind: bytes) -> None:
    row = ledger.serve(answered=status, kind=kind)
    assert row is not None
    assert (row.total_tokens, row.estimated, row.cost) == (0, False, 0)


def test_a_client_s_request_id_is_not_the_row_s_id(ledger: Ledger) -> None:
    row = ledger.serve(headers=((b"X-Request-Id", b"mine"),))
    assert row is not None
    assert (row.id, row.request_id) == ("69259a40" + "0b" * 12, "mine")


def test_the_row_id_begins_with_the_second_of_its_time(ledger: Ledger) -> None:
    row = ledger.serve(headers=((b"X-Request-Id", b"mine"),))
    assert row is not None
    assert int(row.id[:8], 16) == row.time // 1_000_000


def test_a_route_with_an_id_in_it_goes_by_its_name(ledger: Ledger) -> None:
    for number in range(3):
        row = ledger.serve(uri=b"/vllm/v1/responses/resp_%d" % number, method=b"GET")
        assert row is not None
        assert target_of(row.target).route == "/v1/responses/{id}"


def test_a_long_model_s_name_is_cut(ledger: Ledger) -> None:
    row = ledger.serve(model="é" * 400)
    assert row is not None
    assert target_of(row.target).model == "é" * TEXT_LIMIT


def test_a_secret_in_place_of_a_model_s_name_is_redacted(ledger: Ledger) -> None:
    row = ledger.serve(model="sk-0123456789abcdefghij")
    assert row is not None
    assert b"0123456789abcdefghij" not in encode_rows([row])


def test_a_row_has_the_prices_that_were_applied() -> None:
    row = Ledger(PriceList(input_cost_per_token=Decimal("0.1"), output_cost_per_token=Decimal(2))).serve()
    assert row is not None
    assert row.cost == 8_300_000_000_000
    assert dict(target_of(row.target).prices)["input_cost_per_token"] == "0.1"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ((), None),
        (((b"X-Project", b"p"),), {"x-project": "p"}),
        (((b"X-Project", b"p"), (b"X-Project", b"q")), {"x-project": "p"}),
        (((b"X-Project", b"p"), (b"X-Other", b"")), {"x-project": "p", "x-other": ""}),
        (((b"X-Project", b"\xe9" * 300), (b"X-Other", b"1")), {"x-project": "é" * 255, "x-other": "1"}),
    ],
)
def test_the_configured_usage_headers_are_recorded(sent: Any, kept: Any) -> None:
    row = Ledger(usage_headers=(b"x-project", b"x-other")).serve(headers=sent)
    assert row is not None
    assert row.headers == kept


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ({"user": "eve"}, "eve"),
        ({"metadata": {"user_id": "eve"}}, "eve"),
        ({"user": "x" * 300}, "x" * 255),
        ({"user": "eve", "headers": ((b"X-End-User", b" bob "),)}, "bob"),
        ({"user": "eve", "headers": ((b"X-End-User", b" "),)}, "eve"),
        ({}, None),
    ],
)
def test_the_end_user_is_the_one_that_the_client_names(sent: Any, named: str | None) -> None:
    row = Ledger(end_user_headers=(b"x-end-user",)).serve(**sent)
    assert row is not None
    assert row.end_user == named


def test_a_request_that_was_not_sent_leaves_no_row(ledger: Ledger) -> None:
    assert ledger.serve(sent=False) is None


def test_a_running_request_costs_what_it_cost_when_it_began_and_the_next_one_the_new_price() -> None:
    ledger = Ledger(PriceList(output_cost_per_token=Decimal(2)))

    def reload() -> None:
        ledger.accounting.reconfigure(
            prices=PriceTable((), PriceList(output_cost_per_token=Decimal(3))),
            fail_closed=False,
            assumed_output_tokens=1024,
            end_user_headers=(),
            requires_end_user=False,
        )

    running, following = ledger.serve(meanwhile=reload), ledger.serve()
    assert running is not None
    assert following is not None
    assert (running.cost, following.cost) == (8 * 10**12, 12 * 10**12)
    assert dict(target_of(running.target).prices)["output_cost_per_token"] == "2"
    assert dict(target_of(following.target).prices)["output_cost_per_token"] == "3"


SAYING = (
    (b"x-litellm-tags", b" job-1, job-2 ,,job-1"),
    (b"x-litellm-spend-logs-metadata", b'{"ticket": "T-1"}'),
)


def test_a_row_has_what_headers_and_body_say_of_the_request(ledger: Ledger) -> None:
    row = ledger.serve(headers=SAYING, metadata={"tags": ["job-2", "job-3", 5], "spend_logs_metadata": {"b": 1}})
    assert row is not None
    assert row.request_tags == ("job-1", "job-2", "job-3")
    assert row.spend_metadata == '{"ticket":"T-1"}'
    row = ledger.serve(litellm_metadata={"tags": ["a"], "spend_logs_metadata": {"b": 1}}, metadata={"tags": ["c"]})
    assert row is not None
    assert (row.request_tags, row.spend_metadata) == (("a", "c"), '{"b":1}')


def test_a_row_has_no_tags_where_the_operator_wants_none(ledger: Ledger) -> None:
    ledger.recorder.reconfigure((), request_tags=False)
    row = ledger.serve(headers=SAYING, metadata={"tags": ["job-3"]})
    assert row is not None
    assert (row.request_tags, row.spend_metadata) == ((), "")


def test_tags_and_metadata_show_no_key(ledger: Ledger) -> None:
    secret = "sk-0123456789abcdef0123456789abcdef"
    metadata = json.dumps({"key": secret}).encode()
    headers = ((b"x-litellm-tags", secret.encode()), (b"x-litellm-spend-logs-metadata", metadata))
    row = ledger.serve(headers=headers)
    assert row is not None
    assert row.request_tags
    assert secret not in str(row)
    assert json.loads(row.spend_metadata).keys() == {"key"}
