"""What a key may use does not grow with the number of servers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import eventually, request_bytes
from tests.end_to_end.test_fail_over import entries
from twisted_vllm.config.settings import RoutingSettings

COMPLETIONS, CHAT, RESPONSES = "/vllm/v1/completions", "/vllm/v1/chat/completions", "/vllm/v1/responses"
MESSAGES = [{"role": "user", "content": "x"}]
#: each reserves more than half of 3,000 tokens, or more than all of them
GREEDY: list[tuple[str, dict[str, Any], int]] = [
    (COMPLETIONS, {"prompt": "x", "max_tokens": 1600, "min_tokens": 1600, "max_completion_tokens": 1}, 1),
    (RESPONSES, {"input": "x", "max_output_tokens": 1600, "max_tokens": 1}, 1),
    (CHAT, {"messages": MESSAGES, "n": "40", "max_tokens": 200}, 0),
    (COMPLETIONS, {"prompt": ["x"] * 40, "messages": None, "max_tokens": 200}, 0),
    (COMPLETIONS, {"prompt": "x", "n": 5, "max_tokens": 1900, "max_completion_tokens": 1}, 0),
]


@pytest.mark.parametrize("strategy", ["prefix", "least-busy"])
@pytest.mark.parametrize(("route", "body", "admitted"), GREEDY)
@pytest_twisted.ensureDeferred
async def test_a_limit_of_tokens_holds_for_all_servers_together(
    stand_in: Any, gateway_to: Any, reactor: Any, route: str, body: dict[str, Any], admitted: int, strategy: str
) -> None:
    servers = stand_in(), stand_in()
    routing = RoutingSettings(routing_strategy=strategy)
    gateway = gateway_to(None, models=entries(*(each.port for each in servers)), routing=routing)
    key = await gateway.make_key(tpm_limit=3000)
    clients = [await gateway.send(request_bytes("POST", route, key, body={"model": "m", **body})) for _ in range(8)]
    await eventually(reactor, lambda: sum(client.received != b"" for client in clients) == 8 - admitted)
    assert sum(len(each.connections) for each in servers) == admitted
    statuses = Counter(client.received[9:12] for client in clients if client.received)
    assert set(statuses) <= {b"429", b"400"}
