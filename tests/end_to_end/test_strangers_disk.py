"""What a stranger without a key can make the disk hold: one line of the log for a request, and nothing else."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.end_to_end.conftest import MakeGateway, MakeStandIn
from tests.end_to_end.end_to_end_harness import Gateway, request_bytes
from tests.end_to_end.messages import OK

#: the most bytes of the log for one request
MOST_BYTES = 4_096
#: requests of each kind
EACH = 5

LONG = "%7f" * 19_000
REQUESTS = {
    "a path": request_bytes("GET", f"/{LONG}", None),
    "a path of vLLM": request_bytes("GET", f"/vllm/{LONG}", None),
    "a key": request_bytes("POST", "/vllm/v1/chat/completions", "sk-" + "x" * 50_000, body={"model": "m"}),
    "headers": request_bytes("GET", "/vllm/v1/models", None, headers={"User-Agent": LONG[:30_000], "Cookie": "c" * 9}),
    "a request id": request_bytes("GET", "/vllm/v1/models", None, headers={"X-Request-Id": '"' * 128}),
    "an administrative act": request_bytes("POST", "/key/generate", "x" * 9_000, body={"key_alias": "a" * 100_000}),
    "a head that is too large": request_bytes("GET", f"/{LONG * 2}", None),
    "no HTTP": b"\x01" * 60_000 + b"\r\n\r\n",
}


@pytest.fixture
def gateway(gateway_to: MakeGateway, stand_in: MakeStandIn) -> Gateway:
    return gateway_to(stand_in(OK).port)


@pytest.mark.parametrize("what", REQUESTS)
@pytest_twisted.ensureDeferred
async def test_a_request_without_a_key_leaves_one_short_line(gateway: Gateway, what: str) -> None:
    before = len(gateway.log_text())
    for _ in range(EACH):
        assert (await gateway.answer_to(REQUESTS[what])).status in (400, 401, 404, 431)
    written = len(gateway.log_text()) - before
    print(f"{what}: {written / EACH} bytes of the log for one request")
    assert 0 < written <= EACH * MOST_BYTES
    spool = gateway.service.wiring.accounting.spool
    assert spool is not None
    assert spool.written == 0
    assert (await gateway.ask("GET", "/spend/logs")).json == []
    assert (await gateway.ask("GET", "/audit/list")).json["audit_logs"] == []
