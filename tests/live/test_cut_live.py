"""What requests generated before they were cut is charged, compared with vLLM's own counter."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import attrs
import pytest

from tests.live.live_gateway import PATIENCE, LiveGateway, ask, bearer, new_secret, wait_until
from tests.live.live_ledger import CHAT, COMPLETIONS, PRICED, Row, counters, rows_of
from tests.live.live_servers import StartGateway, served_model, server_from

#: requests of one run, how many are sent at a time, and the longest time to a cut in seconds
REQUESTS, AT_ONCE, LONGEST = 200, 8, 1.5
#: others may use the server meanwhile
ATTEMPTS = 3


@attrs.frozen
class Request:
    """One request of the mix.

    Attributes:
        name: its ``x-request-id``.
        route: its route.
        body: its body.
        cut_after: seconds after which its client disconnects; None if it reads everything.
    """

    name: str
    route: str
    body: dict[str, object]
    cut_after: float | None

    @property
    def tokens(self) -> int:
        """The tokens that it generates if it is not cut."""
        choices, limit = self.body["n"], self.body["max_tokens"]
        assert isinstance(choices, int)
        assert isinstance(limit, int)
        return choices * limit


def mixed(model: str, seed: int) -> list[Request]:
    """Return chats and completions, streamed and not, with one to three choices; a third are cut at random moments."""
    chance = random.Random(seed)
    requests = []
    for number in range(REQUESTS):
        route = chance.choice([CHAT, COMPLETIONS])
        words = "tell me more " * chance.choice([1, 4, 30])
        text: dict[str, object] = (
            {"messages": [{"role": "user", "content": words}]} if route == CHAT else {"prompt": words}
        )
        limit = chance.randint(20, 500)
        body = {
            "model": model,
            "n": chance.choice([1, 1, 2, 3]),
            "max_tokens": limit,
            "min_tokens": limit,
            "ignore_eos": True,
            "stream": chance.random() < 0.5,
            **text,
        }
        cut_after = chance.uniform(0, LONGEST) if number % 3 == 2 else None
        requests.append(Request(f"cut-{seed}-{number}", route, body, cut_after))
    return requests


def send(gateway: LiveGateway, key: str, request: Request) -> None:
    """Send a request; read its answer to the end, or disconnect when its time is over."""
    body = json.dumps(request.body).encode()
    lines = [
        f"POST /vllm{request.route} HTTP/1.1",
        "Host: gateway",
        f"X-Request-Id: {request.name}",
        "Content-Type: application/json",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in bearer(key)),
    ]
    where = urlsplit(gateway.url)
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        end = time.monotonic() + (PATIENCE if request.cut_after is None else request.cut_after)
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            try:
                if not connection.recv(65_536):
                    return
            except TimeoutError:
                break
        assert request.cut_after is not None, f"{request.name} did not end"


def is_idle(url: str) -> bool:
    """Return whether vLLM runs no request."""
    text = ask(url, "GET", "/metrics").body.decode()
    running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    return bool(running) and all(float(line.split()[-1]) == 0 for line in running)


@pytest.fixture(scope="module", params=["VLLM_BASE_URL", "VLLM_INTERVAL_URL"])
def url(request: pytest.FixtureRequest) -> str:
    """A vLLM as usual, and one with ``--stream-interval 10``."""
    return server_from(request.param, "this test needs a vLLM with a chat model, here with --stream-interval 10")


@pytest.fixture
def run(start_gateway: StartGateway, url: str) -> Callable[[int], tuple[list[Request], dict[str, Row], int]]:
    """Sends a mix through a new gateway; returns it, the rows by request, and the tokens that vLLM counted."""
    model = served_model(url)

    def run(seed: int) -> tuple[list[Request], dict[str, Row], int]:
        gateway = start_gateway(PRICED, HOSTED_VLLM_API_BASE=url, LITELLM_MASTER_KEY=new_secret())
        key = gateway.make_key()
        requests = mixed(model, seed)
        wait_until(lambda: is_idle(url), "vLLM is idle")
        [before] = counters(url, "generation_tokens")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda each: send(gateway, key, each), requests))
        wait_until(lambda: is_idle(url), "vLLM is idle")
        [after] = counters(url, "generation_tokens")
        rows = rows_of(gateway, key, len(requests))
        return requests, {row["request_id"]: row for row in rows}, after - before

    return run


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_cut_requests_generated_is_charged(
    run: Callable[[int], tuple[list[Request], dict[str, Row], int]],
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    for _ in range(ATTEMPTS):
        requests, rows, counted = run(seed)
        whole = {name for name, row in rows.items() if row["metadata"]["outcome"] == "completed"}
        wrong = [
            (each, rows[each.name]["completion_tokens"])
            for each in requests
            if each.name in whole and rows[each.name]["completion_tokens"] != each.tokens
        ]
        assert wrong == []
        uncut = {each.name for each in requests if each.cut_after is None}
        assert uncut <= whole
        charged = sum(row["completion_tokens"] for row in rows.values())
        of_cut = sum(row["completion_tokens"] for name, row in rows.items() if name not in whole)
        generated_by_cut = counted - (charged - of_cut)
        figures = {
            "charged": charged,
            "counted": counted,
            "ratio": round(charged / counted, 3),
            "cut": len(rows) - len(whole),
            "charged_for_cut": of_cut,
            "generated_by_cut": generated_by_cut,
            "ratio_of_cut": round(of_cut / generated_by_cut, 3),
        }
        print(figures)
        for name, value in figures.items():
            record_property(name, value)
        if 0.9 * counted <= charged <= 1.3 * counted:
            break
    assert len(rows) - len(whole) > REQUESTS / 10
    assert 0.9 * counted <= charged <= 1.3 * counted
