"""``/v1/realtime``: vLLM refuses the WebSocket where its model does not listen, and its refusal is passed on as it is.

A server whose model does (vLLM calls the task ``realtime``) answers 101 instead, and the first event is its own.
"""

from __future__ import annotations

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.live.live_gateway import Answer, Headers, LiveGateway, ask, bearer, without_added

HANDSHAKE = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]


def stable(answer: Answer) -> Headers:
    """Return what two answers have in common; a refused upgrade ends the connection on both ways."""
    return sorted((name, value) for name, value in answer.headers if name.lower() not in ("date", "x-request-id"))


def test_a_refused_websocket_is_refused_in_vllm_s_words(gateway: LiveGateway, vllm_url: str) -> None:
    directly = ask(vllm_url, "GET", "/v1/realtime", HANDSHAKE)
    if directly.status == 101:
        pytest.skip("this vLLM serves /v1/realtime")
    through = ask(gateway.url, "GET", "/vllm/v1/realtime", [*HANDSHAKE, *bearer(gateway.master_key)])
    assert (through.status, through.reason, through.body) == (directly.status, directly.reason, directly.body)
    assert through.header("x-vllm-passthrough-error") is None
    assert stable(without_added(through)) == stable(directly)


def test_a_websocket_client_sees_the_same_through_the_gateway(gateway: LiveGateway, vllm_url: str) -> None:
    seen = []
    for base, headers in ((vllm_url, {}), (f"{gateway.url}/vllm", dict(bearer(gateway.master_key)))):
        try:
            with connect(base.replace("http", "ws", 1) + "/v1/realtime", additional_headers=headers) as socket:
                seen.append(str(socket.recv(30)).split(",")[0])
        except InvalidStatus as refused:
            seen.append(f"{refused.response.status_code} {refused.response.reason_phrase}")
    assert seen[0] == seen[1]


def test_without_a_key_the_gateway_refuses_it_itself(gateway: LiveGateway) -> None:
    assert ask(gateway.url, "GET", "/vllm/v1/realtime", HANDSHAKE).error_code == (401, "missing_api_key")
