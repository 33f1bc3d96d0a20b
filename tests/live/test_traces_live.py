"""A real vLLM continues the gateway's trace: its own spans are below the span of the attempt that it answered."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.live.live_gateway import LiveGateway, new_secret
from tests.live.live_servers import StartGateway, served_model, server_from
from tests.otlp_receiver import OtlpReceiver, http_receiver, plain

PARENT = "b7ad6b7169203331"


def until(is_so: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"still not so after {seconds:g} seconds"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpReceiver]:
    """A collector where vLLM exports to; vLLM keeps its connection from test to test."""
    server_from("VLLM_TRACED_URL", "a vLLM that exports traces")
    with http_receiver(int(os.environ.get("VLLM_TRACES_PORT", "4318"))) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, collector: OtlpReceiver) -> LiveGateway:
    url = server_from("VLLM_TRACED_URL", "a vLLM that exports traces")
    tracing = {"destinations": [{"name": "live", "endpoint": f"{collector.url}/v1/traces"}]}
    settings = {"api_base": url, "tracing": tracing, "log": {"format": "json"}}
    return start_gateway(json.dumps({"passthrough": settings}), LITELLM_MASTER_KEY=new_secret())


@pytest.mark.parametrize("stream", [False, True])
def test_the_spans_of_vllm_are_below_the_gateway_s(gateway: LiveGateway, collector: OtlpReceiver, stream: bool) -> None:
    trace = f"0af7651916cd43dd8448eb211c8031{int(stream):02x}"
    model = served_model(os.environ["VLLM_TRACED_URL"])
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": stream}
    headers = [("content-type", "application/json"), ("traceparent", f"00-{trace}-{PARENT}-01")]
    answer = gateway.ask("POST", "/vllm/v1/chat/completions", gateway.master_key, headers, json.dumps(body).encode())
    assert answer.status == 200, answer

    def spans(scopes: Callable[[str], bool]) -> list[Any]:
        return [
            span
            for export in list(collector.exports)
            for resource in export.data.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if scopes(scope.scope.name) and span.trace_id.hex() == trace
        ]

    def of_gateway() -> list[Any]:
        return sorted(spans(lambda name: name == "twisted_vllm"), key=lambda span: span.kind)

    def of_vllm() -> list[Any]:
        return spans(lambda name: name != "twisted_vllm")

    until(lambda: len(of_gateway()) == 2 and of_vllm())
    server, attempt = of_gateway()
    assert server.parent_span_id.hex() == PARENT
    assert attempt.parent_span_id == server.span_id
    theirs = of_vllm()
    ids = {span.span_id for span in theirs}
    assert {span.parent_span_id for span in theirs if span.parent_span_id not in ids} == {attempt.span_id}
    counted = [plain(span) for span in theirs if "gen_ai.usage.completion_tokens" in plain(span)]
    assert counted[0]["gen_ai.usage.completion_tokens"] == plain(attempt)["gen_ai.usage.output_tokens"]
