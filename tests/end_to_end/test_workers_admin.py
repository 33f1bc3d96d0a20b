"""What an administrator changes at one worker holds at all of them when the answer comes."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.ledger_harness import rows_in
from tests.end_to_end.process_harness import FULL, Connection, served
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, ask, wait_until
from tests.end_to_end.workers_harness import Workers, started
from twisted_vllm.app.shared.changes import PATIENCE as CHANGE_PATIENCE

MODELS = "/vllm/v1/models"
RESPONSES = "/vllm/v1/responses"
CHAT = "/vllm/v1/chat/completions"
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

#: keys that are refused are many here
OPTIONS = "drain_timeout: 3, revoke_running: true, limits: {max_failed_authentications: null}"

#: keys that are made, used, blocked and refused
KEYS = 1_000 if FULL else 120


class Server:
    """A vLLM that lists no models, streams without an end, and generates responses in the background.

    Attributes:
        responses: the responses, by their ids.
        stopped: set when its streams end.
    """

    def __init__(self) -> None:
        self.responses: dict[str, dict[str, Any]] = {}
        self.stopped = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while head := connection.read_head().decode():
            method, path = head.split(" ")[:2]
            length = re.search(r"(?i)content-length: *([0-9]+)", head)
            body = connection.read(int(length[1])) if length else b""
            if method == "POST" and path.endswith("/chat/completions"):
                connection.send(STREAM_HEAD)
                while not self.stopped.wait(0.02):
                    connection.send(b"a\r\ndata: {}\n\n\r\n")
                return
            self._answer(connection, method, path, body)

    def _answer(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        found: dict[str, Any] = {"object": "list", "data": []}
        if path.endswith("/responses"):
            request_id = json.loads(body)["request_id"]
            found = {"id": request_id, "object": "response", "status": "queued", "usage": None}
            self.responses[request_id] = found
        elif "/responses/" in path:
            found = self.responses[path.split("/responses/")[1].split("/")[0].partition("?")[0]]
            if path.endswith("/cancel"):
                found.update(status="cancelled", usage=USAGE)
        text = json.dumps(found).encode()
        connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
        )


class Client:
    """A connection that stays with one worker."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._connection.connect()

    @property
    def local_port(self) -> int:
        return int(self._connection.sock.getsockname()[1])

    def ask(self, path: str, key: str = MASTER_KEY, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        self._connection.request("GET" if body is None else "POST", path, text, headers)
        answer = self._connection.getresponse()
        found = answer.read()
        return answer.status, json.loads(found) if found else None

    def do(self, path: str, **body: Any) -> Any:
        """Change something as an administrator."""
        status, answer = self.ask(path, body=body)
        assert status == 200, answer
        return answer

    def stream(self, key: str, name: str = "stream") -> HTTPResponse:
        """Begin a stream that has no end; return its response, which has begun."""
        self._connection.request(
            "POST",
            CHAT,
            '{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": true}',
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "X-Request-Id": name},
        )
        answer = self._connection.getresponse()
        assert answer.status == 200
        assert answer.read(10)
        return answer

    def close(self) -> None:
        self._connection.close()


def wait_for_end(answer: HTTPResponse) -> None:
    """Read a stream until it is cut."""
    began = time.monotonic()
    with suppress(HTTPException, ConnectionError):
        while answer.read(10):
            assert time.monotonic() - began < PATIENCE


def holder(port: int, local_port: int, pids: dict[int, int]) -> int | None:
    """Return the slot of the process that holds the other end of a connection."""
    wanted = f"0100007F:{port:04X} 0100007F:{local_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        if wanted in line:
            name = f"socket:[{line.split()[9]}]"
            for pid, slot in pids.items():
                for file in Path(f"/proc/{pid}/fd").iterdir():
                    try:
                        if os.readlink(file) == name:
                            return slot
                    except FileNotFoundError:
                        continue
    return None


@contextmanager
def clients(gateway: Workers, slots: tuple[int, ...] = (1, 2)) -> Iterator[list[Client]]:
    """Connect to each of these workers."""
    with ExitStack() as stack:
        found: dict[int, Client] = {}

        def complete() -> bool:
            # a worker that was replaced may not accept yet
            client = Client(gateway.port)
            stack.callback(client.close)
            assert client.ask(MODELS)[0] == 200
            slot = holder(gateway.port, client.local_port, gateway.processes())
            assert slot is not None
            found.setdefault(slot, client)
            return set(slots) <= found.keys()

        wait_until(complete)
        yield [found[slot] for slot in slots]


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


@pytest.fixture(scope="module")
def gateway(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    directory = tmp_path_factory.mktemp("admin")
    with served(server) as listening:
        with started(Workers(directory, listening.port, passthrough=OPTIONS)) as gateway:
            yield gateway
        server.stopped.set()


def read_your_writes(gateway: Workers, count: int) -> list[str]:
    """Make, block, unblock and delete keys at one worker, and use them at the other; return what was wrong."""
    wrong: list[str] = []

    def go(pairs: list[tuple[Client, Client]]) -> None:
        for number in range(count // 3):
            one, other = pairs[number % 2]
            key = one.do("/key/generate", key_alias=f"{threading.get_ident()}-{number}")["key"]
            steps = [("made", other.ask(MODELS, key)[0], 200)]
            one.do("/key/block", key=key)
            steps.append(("blocked", other.ask(MODELS, key)[0], 401))
            other.do("/key/unblock", key=key)
            steps.append(("unblocked", one.ask(MODELS, key)[0], 200))
            other.do("/key/delete", keys=[key])
            steps.append(("deleted", one.ask(MODELS, key)[0], 401))
            wrong.extend(f"{step}: {found}" for step, found, expected in steps if found != expected)

    with ExitStack() as stack:
        threads = []
        for _ in range(3):
            one, other = stack.enter_context(clients(gateway))
            threads.append(threading.Thread(target=go, args=([(one, other), (other, one)],)))
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    return wrong


def test_what_one_worker_writes_the_other_has_at_once(gateway: Workers) -> None:
    assert read_your_writes(gateway, KEYS) == []


def test_users_teams_and_models_reach_the_other_worker_too(gateway: Workers) -> None:
    with clients(gateway) as (one, other):
        team = one.do("/team/new", team_alias="t")["team_id"]
        key = other.do("/key/generate", team_id=team)["key"]
        assert one.ask(MODELS, key)[0] == 200
        one.do("/team/block", team_id=team)
        assert other.ask(MODELS, key)[0] in (401, 403)
        other.do("/team/unblock", team_id=team)
        assert one.ask(MODELS, key)[0] == 200
        base = {"model": "hosted_vllm/new", "api_base": "http://127.0.0.1:9"}
        made = one.do("/model/new", model_name="new", litellm_params=base)
        assert "new" in {each["id"] for each in other.ask("/v1/models")[1]["data"]}
        other.do("/model/delete", id=made["model_info"]["id"])
        assert "new" not in {each["id"] for each in one.ask("/v1/models")[1]["data"]}


def test_a_frozen_worker_holds_up_one_change_for_a_second(gateway: Workers) -> None:
    with clients(gateway) as (one, other):
        key = one.do("/key/generate")["key"]
        assert other.ask(MODELS, key)[0] == 200
        frozen = gateway.pid_of(2)
        os.kill(frozen, signal.SIGSTOP)
        try:
            began = time.monotonic()
            one.do("/key/block", key=key)
            assert CHANGE_PATIENCE * 0.9 < time.monotonic() - began < CHANGE_PATIENCE + 2
            began = time.monotonic()
            for _ in range(5):
                one.do("/key/generate")
            assert time.monotonic() - began < CHANGE_PATIENCE + 2
        finally:
            os.kill(frozen, signal.SIGCONT)
        wait_until(lambda: other.ask(MODELS, key)[0] == 401)
        assert len(gateway.messages("The worker-2 did not take in a change")) == 1
        one.do("/key/unblock", key=key)
        wait_until(lambda: other.ask(MODELS, key)[0] == 200)


def test_a_running_request_ends_when_its_key_is_blocked_at_another_worker(gateway: Workers) -> None:
    with clients(gateway) as (one, other):
        key = one.do("/key/generate")["key"]
        answer = other.stream(key)
        one.do("/key/block", key=key)
        began = time.monotonic()
        wait_for_end(answer)
        assert time.monotonic() - began < 1.0


def test_any_worker_tells_what_all_have_in_flight_and_cuts_it(gateway: Workers) -> None:
    with clients(gateway) as asked, clients(gateway) as (one, other):
        key = asked[0].do("/key/generate", key_alias="watched")["key"]
        streams = {"at-one": one.stream(key, "at-one"), "at-other": other.stream(key, "at-other")}
        # an answer holds for two seconds
        time.sleep(2.1)
        for each in asked:
            status, found = each.ask("/request/live?key=watched")
            assert (status, found["matching"], found["warnings"]) == (200, 2, [])
            assert {row["request_id"] for row in found["requests"]} == {"at-one", "at-other"}
            assert found["by_key"] == [{**found["by_key"][0], "key_name": "watched", "count": 2}]
        # both at one worker, one of them elsewhere
        for name, answer in streams.items():
            cut = asked[0].do("/request/cut", request_id=name, reason="a test")
            assert [(row["request_id"], row["state"]) for row in cut["requests"]] == [(name, "streaming")]
            wait_for_end(answer)
        assert asked[0].ask("/request/live?key=watched")[1]["matching"] == 0
        assert asked[1].ask("/request/cut", body={"request_id": "at-one"})[0] == 404
        entries = asked[1].ask("/audit/list?action=request/cut&page_size=2")[1]["audit_logs"]
        assert [each["object_id"] for each in entries] == ["at-other", "at-one"]


def test_a_background_response_of_a_killed_worker_is_charged_once(gateway: Workers, server: Server) -> None:
    with clients(gateway) as (one, other):
        key = one.do("/key/generate")["key"]
        status, made = one.ask(RESPONSES, key, {"model": "m", "input": "hi", "background": True})
        assert (status, made["status"]) == (200, "queued")
        # any worker finds it
        assert other.ask(f"{RESPONSES}/{made['id']}", key)[1]["status"] == "queued"
        status, cancelled = one.ask(RESPONSES, key, {"model": "m", "input": "hi", "background": True})
        assert other.ask(f"{RESPONSES}/{cancelled['id']}/cancel", key, {})[1]["status"] == "cancelled"
    former = gateway.kill(1)
    gateway.wait_until_replaced(former)
    server.responses[made["id"]].update(status="completed", usage=USAGE)

    def rows() -> list[Any]:
        found = rows_in(gateway.directory / "twisted_vllm.sqlite3").values()
        return [row for each in found for row in each if row["route"] == "/v1/responses" and row["method"] == "POST"]

    wait_until(lambda: len(rows()) >= 2)
    # it is the housekeeper's: the next end of the worker leaves nothing
    gateway.wait_until_replaced(gateway.kill(1))
    time.sleep(1.0)
    assert [(row["outcome"], row["total_tokens"]) for row in rows()].count(("completed", 7)) == 1
    assert len(rows()) == 2


def test_a_worker_begins_with_the_settings_of_the_others_whatever_the_file_has(gateway: Workers) -> None:
    file = gateway.directory / "gateway.yaml"
    before = file.read_text()
    try:
        file.write_text("passthrough: [this is no configuration")
        gateway.wait_until_replaced(gateway.kill(2))
        with clients(gateway) as (one, other):
            assert [each.ask(MODELS)[0] for each in (one, other)] == [200, 200]
            status, answer = one.ask("/config/reload", body={})
            assert status == 400, answer
        file.write_text(before.replace("drain_timeout: 3", "drain_timeout: 3, root_routes: false"))
        gateway.wait_until_replaced(gateway.kill(1))
        # not in effect before a reload
        assert gateway.statuses(10, "/v1/models") == {200: 10}
        status, text = ask(gateway.port, "/config/reload", MASTER_KEY, "POST", "{}")
        assert (status, "passthrough.root_routes" in text) == (200, True), text
        gateway.wait_until_replaced(gateway.kill(1))
        assert gateway.statuses(10, "/v1/chat/completions") == {404: 10}
    finally:
        file.write_text(before)
        gateway.signal(signal.SIGHUP)
    wait_until(lambda: 404 not in gateway.statuses(6, "/v1/chat/completions"))


def test_reloads_at_once_by_signal_and_by_any_worker_all_succeed(gateway: Workers) -> None:
    statuses: list[int] = []

    def reload() -> None:
        statuses.append(ask(gateway.port, "/config/reload", MASTER_KEY, "POST", "{}")[0])

    threads = [threading.Thread(target=reload) for _ in range(6)]
    for each in threads:
        each.start()
        gateway.signal(signal.SIGHUP)
    for each in threads:
        each.join()
    assert statuses == [200] * 6
