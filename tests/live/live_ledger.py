"""What the ledger says of requests through a gateway, beside what vLLM counted meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from tests.live.live_gateway import Answer, LiveGateway, ask, wait_until

#: others may use the server meanwhile
ATTEMPTS = 5
PRICED = """
passthrough:
  default_prices: {input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}
"""

Row = dict[str, Any]
Request = Callable[[str], Answer]


def counters(url: str, *names: str) -> list[int]:
    """Return the sums of vLLM's counters ``vllm:NAME_total``."""
    text = ask(url, "GET", "/metrics").body.decode()
    return [
        int(sum(float(value) for value in re.findall(rf"^vllm:{name}_total{{[^}}]*}} (\S+)$", text, re.MULTILINE)))
        for name in names
    ]


def rows_of(gateway: LiveGateway, key: str, count: int) -> list[Row]:
    """Return the rows of a key, the oldest first, once there are so many."""
    found: list[Row] = []

    def there() -> bool:
        answer = gateway.ask("GET", "/spend/logs?page_size=1000", key)
        assert answer.status == 200, answer.body
        found[:] = answer.json
        return len(found) == count

    wait_until(there, f"the ledger has {count} requests")
    return found[::-1]


def used(gateway: LiveGateway, url: str, requests: Sequence[Request]) -> tuple[list[Row], list[int]]:
    """Send requests one after another, each with a new key.

    Args:
        gateway: the gateway.
        url: the vLLM behind it.
        requests: each sends itself with a key, and is answered 200.

    Returns:
        Their rows, and how many tokens of prompts, answers and the cache vLLM counted for them. If these sums are not
        the rows', they are found again, a few times.
    """
    names = ("prompt_tokens", "generation_tokens", "prompt_tokens_cached")
    for _ in range(ATTEMPTS):
        key = gateway.make_key()
        before = counters(url, *names)
        for request in requests:
            answer = request(key)
            assert answer.status == 200, answer.body
        after = counters(url, *names)
        rows = rows_of(gateway, key, len(requests))
        counted = [now - then for now, then in zip(after, before, strict=True)]
        if counted[:2] == sums(rows)[:2]:
            break
    return rows, counted


def sums(rows: Sequence[Row]) -> list[int]:
    """Return the tokens of the rows' prompts, of their answers, and those from the cache."""
    return [
        sum(row["prompt_tokens"] for row in rows),
        sum(row["completion_tokens"] for row in rows),
        sum(row["metadata"]["cached_tokens"] for row in rows),
    ]
