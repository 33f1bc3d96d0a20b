"""Two workers without Redis: of a burst, exactly as many pass as each limit allows; what has died is not counted."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPException
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
FAILURES, READS, CHANGES = 83, 151, 17

SETTINGS = f"""  workers: 2
  trusted_proxies: [127.0.0.1]
  self_service: {{enabled: true, max_changes: {CHANGES}}}
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
            ("/user/new", {"user_id": "person", "auto_create_key": False}),
            ("/customer/new", {"user_id": "known", "max_budget": 23 * RESERVED + RESERVED - 1}),
        ):
            assert ask(gateway.port, path, MASTER_KEY, "POST", json.dumps(fields))[0] == 200
        keys = {"reads": gateway.make_key(), "held": gateway.make_key(max_parallel_requests=50)}
        keys["person"] = gateway.make_key(user_id="person")
        keys["counted"] = gateway.make_key(rpm_limit=60)
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


def test_what_people_change_is_counted_over_the_workers(deployment: Deployment) -> None:
    head = f"POST /key/generate HTTP/1.1\r\nAuthorization: Bearer {deployment.keys['person']}\r\n"
    found = deployment.burst(f"{head}Content-Type: application/json\r\n", b"{}")
    assert found == {(200, ""): CHANGES, (429, "rate_limit_exceeded"): COUNT - CHANGES}


def test_what_a_killed_worker_held_is_free_within_a_second_and_its_requests_stay_counted(
    deployment: Deployment,
) -> None:
    server, gateway = deployment.server, deployment.gateway
    held, counted = deployment.keys["held"], deployment.keys["counted"]
    server.taken = 0
    server.gate.clear()
    connections: list[Connection] = []
    over = (429, "rate_limit_exceeded")

    def send(key: str, count: int) -> None:
        """Have the server take so many more requests, none of which it answers."""
        head = f"POST {TARGET} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        before = server.taken
        for _ in range(count):
            connections.append(connect(gateway.port))
            connections[-1].send(head.encode() + BODY)
        wait_until(lambda: server.taken == before + count)

    try:
        send(counted, 60)
        first = len(connections)
        send(held, 50)
        assert [gateway.chat(key) for key in (held, counted)] == [over, over]
        os.kill(gateway.processes()[1], signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: any(is_closed(each) for each in connections))
        lost = 0
        while time.monotonic() < began + 1.0:
            lost = sum(is_closed(each) for each in connections[first:])
            time.sleep(0.05)
        assert 0 < lost < 50
        send(held, lost)
        assert gateway.chat(held) == over
        assert [gateway.chat(counted) for _ in range(10)] == [over] * 10
        server.gate.set()
        wait_until(lambda: gateway.chat(held) == (200, ""))
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


def test_what_is_counted_as_spent_is_what_the_database_has_after_processes_were_killed(deployment: Deployment) -> None:
    gateway = deployment.gateway
    key = gateway.make_key(max_budget=10**6)
    wait_until(lambda: all(gateway.knows(key) for _ in range(20)))
    stop = threading.Event()
    answered = Counter[int]()

    def load() -> None:
        while not stop.is_set():
            try:
                answered[gateway.chat(key)[0]] += 1
            except (OSError, HTTPException):
                # its worker was killed
                answered[0] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for slot in (1, 0):
            time.sleep(0.7)
            wait_until(lambda: len(gateway.processes()) == 3)
            os.kill(gateway.processes()[slot], signal.SIGKILL)
        time.sleep(0.7)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert answered[200] > 100
    assert answered.keys() <= {0, 200}

    def spends() -> tuple[float, float]:
        """What the database has, and what the supervisor counts, which it says when it refuses."""
        spend = json.loads(ask(gateway.port, f"/key/info?key={key}", MASTER_KEY)[1])["info"]["spend"]
        text = ask(gateway.port, TARGET, key, "POST", BODY.decode())[1]
        found = re.search(r"Current cost: ([0-9.]+),", text)
        return spend, float(found[1]) if found else -1.0

    assert ask(gateway.port, "/key/update", MASTER_KEY, "POST", json.dumps({"key": key, "max_budget": 1}))[0] == 200
    wait_until(lambda: spends()[0] == spends()[1] >= 7 * answered[200])
    # it stays so
    time.sleep(1.2)
    spend, counted = spends()
    print(f"{dict(answered)}: {spend} in the database, {counted} in the supervisor")
    assert spend == counted
    assert 7 * answered[200] <= spend <= 7 * answered[200] + RESERVED * answered[0]


def test_while_redis_is_away_the_supervisor_counts(tmp_path: Path) -> None:
    from tests.services.private_redis import PrivateRedis, find_redis

    binary = find_redis()
    if binary is None:
        pytest.skip("Redis' server program (redis-server) is not installed")
    redis = PrivateRedis(binary)
    redis.start()
    try:
        with (
            served(GatedServer().serve) as server,
            TwoWorkers(
                tmp_path,
                server.port,
                settings="  workers: 2\n  limits_on_redis_loss: local\n",
                VLLM_PASSTHROUGH_REDIS_URL=redis.url,
            ) as gateway,
        ):
            wait_until(lambda: gateway.messages("Serving with 2 workers"))
            key = gateway.make_key(rpm_limit=10)
            wait_until(lambda: all(gateway.knows(key) for _ in range(20)))
            assert Counter(gateway.chat(key)[0] for _ in range(30)) == {200: 10, 429: 20}
            redis.stop()
            wait_until(lambda: len(gateway.messages("this gateway's supervisor counts limits")) == 3)
            assert Counter(gateway.chat(key)[0] for _ in range(30)) == {200: 10, 429: 20}
    finally:
        redis.remove()
