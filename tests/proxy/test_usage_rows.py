"""What a request that is over leaves in the ledger: the row that the accounts make of it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from tests.proxy.gateway_fakes import FakeRequest, server
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.grants import Changes, KeyGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import Principal
from twisted_vllm.config.settings import PriceList, TenantRoutes
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.proxy import accounting as accounts_module
from twisted_vllm.proxy.accounting import TEXT_LIMIT, Accounting
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.relay import Relay
from twisted_vllm.proxy.request_recorder import RequestRecorder
from twisted_vllm.proxy.resource import RequestContext
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.upstreams.router import Router
from twisted_vllm.usage.pricing import PriceTable
from twisted_vllm.usage.records import Payer, Target, UsageRow
from twisted_vllm.usage.references import refer, target_of
from twisted_vllm.usage.spool.lines import encode_rows

#: when requests begin, and when they are over, in Unix seconds
BEGAN, OVER = 1_764_072_000.25, 1_764_072_001.75
OWN_ID = b"69259a40" + b"0a" * 12
ANSWER = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
CHAT = b"/vllm/v1/chat/completions"
KEY = "ab" * 32


class AccountingService:
    """Accounting whose rows are kept in a list, for one key."""

    def __init__(self, prices: PriceList | None = None, **settings: Any) -> None:
        self.kept: list[UsageRow] = []
        self.healthy = True
        self.index = KeyIndex()
        grant = KeyGrant(token=KEY, key_id="k1", name="ada's", user_id="ada", team_id="red", tags=("x",))
        self.index.apply(Changes(keys={KEY: grant}))
        self.accounts = Accounting(
            limiter=LocalLimiter(),
            end_users=self.index,
            prices=PriceTable((), prices or PriceList()),
            rows=self,
            make_id=lambda started: b"%08x" % int(started) + b"0b" * 12,
            **settings,
        )
        self.admission = Admission(
            authenticator=Authenticator(None, self.index),
            policy=RoutePolicy(TenantRoutes()),
            router=Router((), server()),
            path_aliases=True,
        )

    def append(self, row: UsageRow) -> None:
        self.kept.append(row)

    def principal(self) -> Principal:
        found = self.index.find(KEY)
        assert found is not None
        return found.principal

    def serve(
        self,
        *,
        uri: bytes = CHAT,
        method: bytes = b"POST",
        model: str = "m",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        outcome: str = "completed",
        went_on: bool = True,
        answered: int = 200,
        kind: bytes = b"application/json",
        **fields: Any,
    ) -> UsageRow | None:
        """Have a request served and closed; return its row."""
        body = json.dumps({"model": model, **fields}).encode()
        request: Any = FakeRequest(
            method=method, uri=uri, headers=[(b"Content-Type", b"application/json"), *headers], body=body
        )
        request.request_id = request.head.get(b"x-request-id", OWN_ID)
        request.started, request.first_byte = BEGAN, BEGAN + 0.5
        entry = self.admission.enter(self.principal(), method, uri.removeprefix(b"/vllm"))
        admitted = self.admission.admit(entry, request.head, body)
        charge, _ = self.accounts.open(request, entry, admitted)
        assert charge is not None
        charge.start(ResponseHead(answered, b"OK", [(b"Content-Type", kind)]))
        charge.finish(ANSWER)
        note = request.note = RequestContext(entry)
        note.charge, note.model, note.server, note.relay = charge, admitted.model, admitted.server.name, Relay(request)
        note.relay.outcome = outcome
        request.status, request.sentLength, request.finished = 200, len(ANSWER), True
        request.principal = entry.principal
        self.accounts.close(request, charge, went_on, RequestRecorder(now=lambda: OVER).record(request, OVER))
        return self.kept.pop() if self.kept else None


@pytest.fixture
def books() -> AccountingService:
    return AccountingService()


def test_a_row_says_who_asked_what_of_whom_and_what_it_used(books: AccountingService) -> None:
    assert books.serve() == UsageRow(
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


def test_requests_that_ask_the_same_share_what_they_ask(books: AccountingService) -> None:
    first, second = books.serve(), books.serve()
    assert first is not None and second is not None
    assert first.target is second.target


def test_what_is_shared_is_forgotten_before_it_is_too_much(
    books: AccountingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_module, "MOST_TARIFFS", 3)
    for number in range(10):
        row = books.serve(model=f"m{number}")
        assert row is not None and target_of(row.target).model == f"m{number}"
        assert len(books.accounts._tariffs) <= 3


def test_what_is_named_at_great_length_is_not_remembered(books: AccountingService) -> None:
    assert books.serve(model="m" * 1_000) is not None
    assert not books.accounts._tariffs


@pytest.mark.parametrize(
    "asked", [{"model": "n"}, {"uri": b"/vllm/v1/completions"}, {"uri": b"/vllm/v1/models", "method": b"GET"}]
)
def test_requests_that_ask_something_else_share_nothing(books: AccountingService, asked: Any) -> None:
    first, second = books.serve(), books.serve(**asked)
    assert first is not None and second is not None
    assert first.target != second.target


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, b"application/json"), (404, b"text/event-stream; charset=utf-8"), (500, b"application/json")],
)
def test_an_error_uses_nothing_whatever_it_says(books: AccountingService, status: int, kind: bytes) -> None:
    row = books.serve(answered=status, kind=kind)
    assert row is not None
    assert (row.total_tokens, row.estimated, row.cost) == (0, False, 0)


def test_an_id_of_the_client_s_is_no_row_s_id(books: AccountingService) -> None:
    row = books.serve(headers=((b"X-Request-Id", b"mine"),))
    assert row is not None
    assert (row.id, row.request_id) == ("69259a40" + "0b" * 12, "mine")


def test_the_id_tells_the_second_of_the_time(books: AccountingService) -> None:
    row = books.serve(headers=((b"X-Request-Id", b"mine"),))
    assert row is not None
    assert int(row.id[:8], 16) == row.time // 1_000_000


def test_a_route_with_an_id_in_it_goes_by_its_name(books: AccountingService) -> None:
    for number in range(3):
        row = books.serve(uri=b"/vllm/v1/responses/resp_%d" % number, method=b"GET")
        assert row is not None
        assert target_of(row.target).route == "/v1/responses/{id}"


def test_a_long_model_s_name_is_cut(books: AccountingService) -> None:
    row = books.serve(model="é" * 400)
    assert row is not None
    assert target_of(row.target).model == "é" * TEXT_LIMIT


def test_a_secret_in_the_place_of_a_model_s_name_is_struck_out(books: AccountingService) -> None:
    row = books.serve(model="sk-0123456789abcdefghij")
    assert row is not None
    assert b"0123456789abcdefghij" not in encode_rows([row])


def test_a_row_says_what_it_was_charged_at() -> None:
    row = AccountingService(PriceList(input_cost_per_token=Decimal("0.1"), output_cost_per_token=Decimal(2))).serve()
    assert row is not None
    assert row.cost == 8_300_000_000_000
    assert dict(target_of(row.target).prices)["input_cost_per_token"] == "0.1"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ((), None),
        (((b"X-Project", b"p"),), {"x-project": "p"}),
        (((b"X-Project", b"p"), (b"X-Project", b"q")), {"x-project": "p"}),
        (((b"X-Project", b"\xe9" * 300), (b"X-Other", b"1")), {"x-project": "é" * 255, "x-other": "1"}),
    ],
)
def test_the_headers_that_are_asked_for_are_kept(sent: Any, kept: Any) -> None:
    row = AccountingService(usage_headers=(b"x-project", b"x-other")).serve(headers=sent)
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
def test_the_end_user_is_who_the_client_names(sent: Any, named: str | None) -> None:
    row = AccountingService(end_user_headers=(b"x-end-user",)).serve(**sent)
    assert row is not None
    assert row.end_user == named


def test_what_no_server_was_asked_leaves_no_row(books: AccountingService) -> None:
    assert books.serve(went_on=False) is None
