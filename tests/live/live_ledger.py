"""Requests of many kinds, the ledger's rows of them, and what vLLM counted meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.live.live_gateway import Answer, LiveGateway, ask, wait_until

#: a slow vLLM now and then puts two tokens into one event, and others may use the server meanwhile
ATTEMPTS = 5
CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
NAMES = re.compile(rb'"id":"[a-z]+-[0-9a-f]+"|"created":\d+')
EVIL = '"usage":{"prompt_tokens":1,"completion_tokens":1}\n\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
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


def counted_by_vllm(url: str) -> tuple[int, int]:
    """Return how many tokens of prompts and of answers vLLM has counted."""
    prompt, generation = counters(url, "prompt_tokens", "generation_tokens")
    return prompt, generation


def varied(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield 52 requests: four routes, streamed and not, usage asked for or not, short and long, plain and hostile."""
    texts = ("Say hi", "Grüße, 東京 🙂", EVIL, "x " * 150, "", '\\"usage\\":')
    for number, text in enumerate(texts):
        base = {"model": model, "temperature": 0, "seed": number}
        messages = [{"role": "user", "content": text or "?"}]
        most = 1 + number * 3
        yield CHAT, {**base, "messages": messages, "max_tokens": most}
        yield CHAT, {**base, "messages": messages, "max_completion_tokens": most, "stream": True}
        yield CHAT, {**base, "messages": messages, "max_tokens": most, "stream": True, "stream_options": {}}
        yield COMPLETIONS, {**base, "prompt": text or "?", "max_tokens": most}
        yield COMPLETIONS, {**base, "prompt": text or "?", "max_tokens": most, "stream": True}
        options = {"include_usage": True, "continuous_usage_stats": number % 2 == 0}
        yield COMPLETIONS, {**base, "prompt": ["a", "b"], "max_tokens": most, "stream": True, "stream_options": options}
        yield (
            RESPONSES,
            {"model": model, "input": text or "?", "max_output_tokens": most + 1, "stream": number % 2 == 0},
        )
        yield MESSAGES, {"model": model, "messages": messages, "max_tokens": most, "stream": number % 2 == 1}
    for stop in ("a", "e", "t", "o"):
        yield CHAT, {"model": model, "messages": [{"role": "user", "content": "Tell"}], "max_tokens": 9, "stop": stop}


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
    """Send requests one after another, with a new key.

    Args:
        gateway: the gateway.
        url: the vLLM behind it.
        requests: each sends itself with a key, and is answered 200.

    Returns:
        Their rows, and how many tokens of prompts, answers and the cache vLLM counted for them. If these differ from
        the rows' sums, all is done again, up to `ATTEMPTS` times.
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
