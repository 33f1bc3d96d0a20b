"""Two workers without Redis: of a burst, exactly as many pass as each limit allows; what has died is not counted."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.end_to_end.limits_harness import BODY, MODEL, TARGET, GatedServer, LimitingGateway, burst
from tests.end_to_end.process_harness import Connection, connect, many_descriptors, served
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from twisted_vllm.usage.estimate import estimate_prompt

COUNT = 2_000
#: tokens, and as many dollars, that are reserved for one request
RESERVED = estimate_prompt(BODY) + 4
FAILURES, READS = 83, 151

SETTINGS = f"""  workers: 2
  trusted_proxies: [127.0.0.1]
  limits: {{max_failed_authentications: {FAILURES}, max_uncounted_requests: {READS}}}
litellm_settings: {{max_end_user_budget: {29 * RESERVED + RESERVED - 1}}}
"""

#: by the name of a limit: the fields of its key, how many requests it admits at once, and the error code of the others
LIMITS: dict[str, tuple[dict[str, Any], int, str]] = {
    "rpm": ({"rpm_limit": 131}, 131, "rate_limit_exceeded"),
    "parallel": ({"max_parallel_requests": 57}, 57, "rate_limit_exceeded"),
    "tpm": ({"tpm_limit": 61 * RESERVED + RESERVED - 1}, 61, "rate_limit_exceeded"),
    "model_rpm": ({"model_rpm_limit": {MODEL: 89}}, 89, "rate_limit_exceeded"),
    "model_tpm": ({"model_tpm_limit": {MODEL: 1 * RESERVED}}, 1, "rate_limit_exceeded"),
    "budget": ({"max_budget": 43 * RESERVED + RESERVED - 1, "budget_duration": "30d"}, 43, "budget_exceeded"),
    "team": ({"team_id": "team"}, 37, "rate_limit_exceeded"),
    "end user": ({}, 23, "budget_exceeded"),
    "end user without a record": ({}, 29, "budget_exceeded"),
}
END_USERS = {"end user": "known", "end user without a record": "stranger"}


class TwoWorkers(LimitingGateway):
    """A gateway with two workers."""

    def processes(self) -> dict[int, int]:
        """The pids by slot; 0 is the housekeeper."""
        found = {}
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            try:
                slot = re.search(r'"slot":(\d+)', Path(f"/proc/{pid}/cmdline").read_text())
            except FileNotFoundError:
                continue
            if slot is not None:
                found[int(slot[1])] = int(pid)
        return found


@attrs.frozen
class Deployment:
    """A gateway with two workers, the server behind it, and a key for each of `LIMITS` and more."""

    server: GatedServer
    gateway: TwoWorkers
    keys: dict[str, str]

    def burst(self, head: str, body: bytes, expected: int = 0) -> Counter[tuple[int, str]]:
        """Send the same request many times at once, while the server answers none of those that reach it."""
        raw = f"{head}Host: g\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        return burst([self.gateway.port], "", COUNT, self.server, expected, raw)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with ExitStack() as stack:
        stack.enter_context(many_descriptors(3 * COUNT + 500))
        server = GatedServer()
        port = stack.enter_context(served(server.serve)).port
        gateway = stack.enter_context(TwoWorkers(tmp_path_factory.mktemp("workers"), port, settings=SETTINGS))
        wait_until(lambda: gateway.messages("Serving with 2 workers"))
        for path, fields in (
            ("/team/new", {"team_id": "team", "rpm_limit": 37}),
            ("/customer/new", {"user_id": "known", "max_budget": 23 * RESERVED + RESERVED - 1}),
        ):
            assert ask(gateway.port, path, MASTER_KEY, "POST", json.dumps(fields))[0] == 200
        keys = {"reads": gateway.make_key(), "held": gateway.make_key(max_parallel_requests=50)}
        keys |= {name: gateway.make_key(**limits) for name, (limits, _, _) in LIMITS.items()}
        # the other worker hears of new keys half a second later
        last = list(keys.values())[-1]
        wait_until(lambda: all(gateway.knows(last) for _ in range(20)))
        yield Deployment(server, gateway, keys)


@pytest.mark.parametrize("name", LIMITS)
def test_a_burst_gets_exactly_what_is_allowed(deployment: Deployment, name: str) -> None:
    limits, expected, code = LIMITS[name]
    head = (
        f"POST {TARGET} HTTP/1.1\r\nAuthorization: Bearer {deployment.keys[name]}\r\nContent-Type: application/json\r\n"
    )
    if name in END_USERS:
        head += f"x-litellm-end-user-id: {END_USERS[name]}\r\n"
    found = deployment.burst(head, BODY, expected)
    print(f"{COUNT} requests at once on 2 workers, {name} {limits}: {dict(found)}")
    assert deployment.server.taken == expected
    assert found == {(200, ""): expected, (429, code): COUNT - expected}


def test_failed_authentications_are_counted_by_address_over_the_workers(deployment: Deployment) -> None:
    for path, address in ((TARGET, "192.0.2.7"), ("/key/info", "192.0.2.8")):
        method = "POST" if path == TARGET else "GET"
        head = f"{method} {path} HTTP/1.1\r\nAuthorization: Bearer sk-guess\r\nX-Forwarded-For: {address}\r\n"
        found = deployment.burst(head, b"")
        codes = Counter({status: 0 for status, _ in found})
        for (status, _), count in found.items():
            codes[status] += count
        assert codes == {401: FAILURES, 429: COUNT - FAILURES}


def test_what_no_limit_counts_is_counted_over_the_workers(deployment: Deployment) -> None:
    head = f"GET /key/info HTTP/1.1\r\nAuthorization: Bearer {deployment.keys['reads']}\r\n"
    found = deployment.burst(head, b"")
    assert found == {(200, ""): READS, (429, "rate_limit_exceeded"): COUNT - READS}
    head = f"OPTIONS {TARGET} HTTP/1.1\r\nX-Forwarded-For: 192.0.2.9\r\nOrigin: https://app.example\r\n"
    head += "Access-Control-Request-Method: POST\r\n"
    found = deployment.burst(head, b"", READS)
    assert found == {(200, ""): READS, (429, "rate_limit_exceeded"): COUNT - READS}


def test_what_a_killed_worker_held_is_free_within_a_second(deployment: Deployment) -> None:
    server, gateway, key = deployment.server, deployment.gateway, deployment.keys["held"]
    head = f"POST {TARGET} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    raw = f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    server.taken = 0
    server.gate.clear()
    connections: list[Connection] = []

    def held(count: int) -> None:
        for _ in range(count):
            connections.append(connect(gateway.port))
            connections[-1].send(raw)
        wait_until(lambda: server.taken == 50)

    try:
        held(50)
        assert gateway.chat(key) == (429, "rate_limit_exceeded")
        workers = gateway.processes()
        os.kill(workers[1], signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: any(is_closed(each) for each in connections))
        lost = 0
        while time.monotonic() < began + 1.0:
            lost = sum(is_closed(each) for each in connections)
            time.sleep(0.05)
        assert 0 < lost < 50
        server.taken = 50 - lost
        held(lost)
        assert gateway.chat(key) == (429, "rate_limit_exceeded")
        server.gate.set()
        wait_until(lambda: gateway.chat(key) == (200, ""))
    finally:
        server.gate.set()
        for each in connections:
            each.close()
    wait_until(lambda: len(gateway.processes()) == 3)


def is_closed(connection: Connection) -> bool:
    connection.socket.setblocking(False)
    try:
        return connection.socket.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        connection.socket.setblocking(True)


def test_the_spend_that_an_administrator_sets_counts_at_once_on_every_worker(deployment: Deployment) -> None:
    gateway = deployment.gateway
    most = 100 * RESERVED
    key = gateway.make_key(max_budget=most)
    wait_until(lambda: all(gateway.knows(key) for _ in range(20)))
    for _ in range(5):
        for spend, expected in ((most, (429, "budget_exceeded")), (0, (200, ""))):
            update = json.dumps({"key": key, "spend": spend})
            status, text = ask(gateway.port, "/key/update", MASTER_KEY, "POST", update)
            assert status == 200, text
            assert [gateway.chat(key) for _ in range(4)] == [expected] * 4


def test_a_frozen_supervisor_has_requests_with_limits_refused_and_others_served(deployment: Deployment) -> None:
    gateway = deployment.gateway
    limited, free = gateway.make_key(rpm_limit=1000), gateway.make_key()
    wait_until(lambda: all(gateway.knows(key) for _ in range(20) for key in (limited,)))
    wait_until(lambda: all(gateway.chat(free) == (200, "") for _ in range(10)))
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        assert gateway.chat(limited) == (503, "limits_unavailable")
        assert gateway.chat(free) == (200, "")
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    wait_until(lambda: all(gateway.chat(limited) == (200, "") for _ in range(10)))
