"""A fault in a usage reader: the request still has its row, and its response still ends."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import begin, request_bytes
from tests.end_to_end.ledger_harness import ANSWER, EVENTS, rows_in
from tests.end_to_end.messages import EVENT_STREAM, LAST, chunk, whole
from twisted_vllm.usage.meter import UsageMeter


class Faulty(Exception):
    pass


def fails(*_: object) -> None:
    raise Faulty


#: the step that fails, whether a stream is read, the outcome and status of the row, and the end of what the client gets
CASES = [
    ("start", False, "failed", 500, b"}}"),
    ("start", True, "failed", 500, b"}}"),
    ("finish", False, "failed", 500, b"}}"),
    # a stream without an end is no whole answer
    ("finish", True, "failed", 200, chunk(EVENTS)),
    ("finish, as the server goes", True, "failed", 200, chunk(EVENTS)),
    ("feed", True, "failed", 200, b"\r\n\r\n"),
    # the response is complete; only the count is missing
    ("usage", False, "completed", 200, ANSWER),
    ("usage", True, "completed", 200, chunk(EVENTS) + LAST),
]


@pytest.mark.parametrize(("step", "stream", "outcome", "status", "end"), CASES)
@pytest_twisted.ensureDeferred
async def test_a_fault_while_usage_is_read_leaves_one_row_and_ends_the_answer(
    stand_in: Any,
    gateway_to: Any,
    monkeypatch: pytest.MonkeyPatch,
    logged_failures: Any,
    step: str,
    stream: bool,
    outcome: str,
    status: int,
    end: bytes,
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    key = await gateway.make_key(max_parallel_requests=1)
    body = {"model": "m", "stream": stream}
    ask = request_bytes("POST", "/vllm/v1/chat/completions", key, headers={"X-Request-Id": "faulty"}, body=body)
    with monkeypatch.context() as patched:
        patched.setattr(UsageMeter, step.partition(",")[0], fails)
        client, upstream = await begin(server, gateway, ask, until=b"}")
        if not stream:
            upstream.send(whole(ANSWER))
        else:
            upstream.send(EVENT_STREAM + chunk(EVENTS))
            if step.startswith(("finish", "usage")):
                await client.until_received(EVENTS)
                if step.endswith("goes"):
                    upstream.cut()
                else:
                    upstream.send(LAST)
        if outcome == "failed" and status == 200:
            await client.until_lost()
        else:
            await client.until(lambda: client.received.endswith(end))
    assert client.received.endswith(end)
    client.cut()
    assert logged_failures.flush(Faulty)
    server.answer = whole(ANSWER)
    # nothing stays reserved
    assert (await gateway.answer_to(ask.replace(b"faulty", b"sound"))).status == 200
    await gateway.stop()
    found = rows_in(gateway.database_file)
    [faulty], [sound] = found.pop("faulty"), found.pop("sound")
    assert (faulty["outcome"], faulty["status"], found) == (outcome, status, {})
    # what could not be read to its end is estimated, if it is counted at all
    assert bool(faulty["estimated"]) == (faulty["total_tokens"] > 0)
    assert (sound["outcome"], sound["status"], sound["total_tokens"]) == ("completed", 200, 7)
