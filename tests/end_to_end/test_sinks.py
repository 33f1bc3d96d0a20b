"""Sinks of a real gateway: several at once under load, one that hangs, a kill, a reload, a stop."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.many_callers import ANSWER, serve
from tests.end_to_end.process_harness import MEBIBYTE, MeasuredGateway, served
from tests.end_to_end.test_ledger_kill import REQUEST, ask_on
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until

SLOW = """
import time

class Slow:
    def log_success_event(self, *arguments):
        time.sleep(60)

slow = Slow()
"""


#: requests whose cost is compared
REQUESTS = 2000
#: milliseconds that a request may take beside sinks that hang, on a machine that does much else
LONGEST = 2000.0


class Hook(ThreadingHTTPServer):
    """A webhook in threads; it keeps the ids of the requests that it is told of, and can hang or refuse."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.ids: Counter[str] = Counter()
        self.status = 200
        self.hangs = False
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/in"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        hook = self.server
        assert isinstance(hook, Hook)
        body = self.rfile.read(int(self.headers["content-length"]))
        if hook.hangs:
            hook.released.wait(60)
            return
        self.send_response(hook.status)
        self.send_header("content-length", "0")
        self.end_headers()
        if hook.status == 200:
            hook.ids.update(each["request_id"] for each in json.loads(body) if "request_id" in each)

    def log_message(self, *arguments: Any) -> None: ...


@contextmanager
def hooked(port: int = 0) -> Iterator[Hook]:
    hook = Hook(port)
    try:
        yield hook
    finally:
        hook.released.set()
        hook.shutdown()
        hook.server_close()


def named(*sinks: dict[str, Any]) -> str:
    """Return members of the mapping ``passthrough``."""
    return yaml.safe_dump({"sinks": list(sinks)}, default_flow_style=True, width=10_000).strip()[1:-1]


def metric(port: int, name: str, sink: str) -> float:
    text = ask(port, "/metrics")[1]
    found = re.search(rf'^vllm_passthrough_delivery_{name}\{{sink="{sink}"\}} (\S+)', text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def times_of(port: int, count: int) -> list[float]:
    """Send requests one after the other; return how long each took, in milliseconds."""
    found = []
    with closing(socket.create_connection((HOST, port), 10.0)) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(REQUEST)
            received = b""
            while not received.endswith(ANSWER):
                data = connection.recv(65_536)
                assert data
                received += data
            found.append((time.perf_counter() - began) * 1000)
    return found


def cost_and_worst(gateway: MeasuredGateway) -> tuple[float, float]:
    """Send requests; return the gateway's CPU for each, and the longest time of one, both in milliseconds.

    What else the machine does changes every percentile of the times, but not the CPU.
    """
    before = gateway.cpu_seconds
    worst = max(times_of(gateway.port, REQUESTS))
    return (gateway.cpu_seconds - before) * 1000 / REQUESTS, worst


def test_a_kill_with_a_spool_loses_no_request_that_a_client_saw_answered(tmp_path: Path) -> None:
    seen: list[str] = []
    chance = random.Random(7)
    with hooked() as hook, served(serve) as server:
        sink = {"name": "hook", "type": "webhook", "url": hook.url, "events": ["requests"]}
        settings = named(sink | {"spool": {"enabled": True}, "queue": {"linger": 0.05}})
        for status in (200, 503, 200):
            hook.status = status
            with MeasuredGateway(tmp_path, server.port, passthrough=settings) as gateway:
                clients = [threading.Thread(target=ask_on, args=(gateway.port, seen)) for _ in range(3)]
                for client in clients:
                    client.start()
                time.sleep(chance.uniform(0.3, 0.9))
                gateway.signal(signal.SIGKILL)
                gateway.wait()
                for client in clients:
                    client.join()
        assert len(seen) > 100
        files = list((tmp_path / "vllm_passthrough.sinks" / "hook").iterdir())
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        with MeasuredGateway(tmp_path, server.port, passthrough=settings) as gateway:
            wait_until(lambda: set(seen) <= set(hook.ids))
            assert gateway.terminate() == 0
        twice = sum(count - 1 for count in hook.ids.values())
        print(f"{len(seen)} answers seen, {len(hook.ids)} requests told, {twice} of them twice")
        # nothing is left
        assert not list((tmp_path / "vllm_passthrough.sinks" / "hook").iterdir())


def test_a_sink_that_hangs_harms_neither_requests_nor_other_sinks(tmp_path: Path) -> None:
    (tmp_path / "slow_logger.py").write_text(SLOW)
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(str(tmp_path / "log"))
    bounds = {"max_items": 200, "batch_items": 50, "linger": 0.05}
    with closing(syslog), hooked() as hook, served(serve) as server:
        hook.hangs = True
        sinks = named(
            {"name": "file", "type": "file", "path": "sink.log", "format": "event", "events": ["requests"]},
            {"name": "text", "type": "file", "path": "sink.txt", "format": "text", "events": ["requests", "log"]},
            {"name": "syslog", "type": "syslog", "address": f"unix:{tmp_path / 'log'}", "queue": bounds},
            {"name": "hook", "type": "webhook", "url": hook.url, "events": ["requests"], "queue": bounds},
            {"name": "python", "type": "python", "object": "slow_logger.slow", "queue": bounds},
        )
        with MeasuredGateway(tmp_path, server.port) as gateway:
            times_of(gateway.port, 300)
            alone, _ = cost_and_worst(gateway)
        (tmp_path / "gateway.log").unlink()
        with MeasuredGateway(tmp_path, server.port, passthrough=sinks) as gateway:
            times_of(gateway.port, 300)
            before = gateway.memory
            beside, worst = cost_and_worst(gateway)
            grown = gateway.memory - before
            sent = 300 + REQUESTS
            print(f"CPU of a request: {alone:.2f} ms without sinks, {beside:.2f} ms with five")
            print(f"the slowest took {worst:.0f} ms; {grown / MEBIBYTE:.1f} MiB more")
            assert beside < 3 * alone
            assert worst < LONGEST
            assert grown < 24 * MEBIBYTE
            wait_until(lambda: metric(gateway.port, "delivered_total", "file") == sent)
            assert metric(gateway.port, "dropped_total", "file") == 0
            for sink in ("hook", "python"):
                assert metric(gateway.port, "dropped_total", sink) > sent - 800
                assert metric(gateway.port, "queued", sink) <= 250
                assert metric(gateway.port, "oldest_seconds", sink) > 0
            began = time.monotonic()
            assert gateway.terminate() == 0
            took = time.monotonic() - began
            print(f"stopped after {took:.1f} s")
            assert took < 9
        assert len((tmp_path / "sink.log").read_text().splitlines()) == sent
        assert len([line for line in (tmp_path / "sink.txt").read_text().splitlines() if " 200 POST " in line]) == sent
        log = (tmp_path / "gateway.log").read_text()
        assert re.search(r'"message":"\d+ items for hook are lost: the gateway stopped"', log)


def test_a_sink_is_added_changed_and_removed_by_a_reload(tmp_path: Path) -> None:
    with hooked() as hook, served(serve) as server, MeasuredGateway(tmp_path, server.port) as gateway:

        def reload(*sinks: dict[str, Any]) -> None:
            file = tmp_path / "gateway.yaml"
            file.write_text(f"passthrough: {{log: {{file: gateway.log, format: json}}, {named(*sinks)}}}\n")
            status, answer = ask(gateway.port, "/config/reload", MASTER_KEY, "POST")
            assert status == 200, answer

        sink = {"name": "a", "type": "file", "path": "a.log", "events": ["requests"], "queue": {"linger": 0.02}}
        reload(sink)
        times_of(gateway.port, 3)
        wait_until(lambda: metric(gateway.port, "delivered_total", "a") == 3)
        reload(sink | {"path": "b.log"})
        times_of(gateway.port, 2)
        wait_until(lambda: metric(gateway.port, "delivered_total", "a") == 5)
        assert len((tmp_path / "a.log").read_text().splitlines()) == 3
        assert len((tmp_path / "b.log").read_text().splitlines()) == 2
        reload({"name": "b", "type": "webhook", "url": hook.url, "queue": {"linger": 0.02}})
        times_of(gateway.port, 4)
        wait_until(lambda: sum(hook.ids.values()) >= 4)
        assert 'sink="a"' not in ask(gateway.port, "/metrics")[1]
        status, answer = ask_reload_of_a_broken_sink(tmp_path, gateway.port)
        assert status == 422 or status == 400
        assert "passthrough.sinks[0].path" in answer
        assert "passthrough.sinks[1].object" in answer
        times_of(gateway.port, 1)
        wait_until(lambda: sum(hook.ids.values()) >= 5)


def ask_reload_of_a_broken_sink(directory: Path, port: int) -> tuple[int, str]:
    broken = named(
        {"name": "c", "type": "file", "path": "no/such/directory/c.log"},
        {"name": "d", "type": "python", "object": "no_such_module.logger"},
    )
    (directory / "gateway.yaml").write_text(f"passthrough: {{log: {{file: gateway.log}}, {broken}}}\n")
    return ask(port, "/config/reload", MASTER_KEY, "POST")


def test_callbacks_of_litellm_work_and_a_guardrail_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    (tmp_path / "my_callbacks.py").write_text(
        "import json\n"
        "class Logger:\n"
        "    async def async_log_success_event(self, kwargs, response, start, end):\n"
        "        with open('told.jsonl', 'a') as file:\n"
        "            file.write(json.dumps(kwargs['standard_logging_object']) + '\\n')\n"
        "logger = Logger()\n"
        "class Guard(Logger):\n"
        "    async def async_pre_call_hook(self, *arguments): raise ValueError\n"
        "guard = Guard()\n"
    )
    with hooked() as hook, served(serve) as server:
        settings = "litellm_settings: {success_callback: [my_callbacks.logger, generic_api]}"
        # what generic_api gets has no request_id, but litellm_call_id
        with MeasuredGateway(tmp_path, server.port, settings=settings, GENERIC_LOGGER_ENDPOINT=hook.url) as gateway:
            times_of(gateway.port, 2)
            ask(gateway.port, "/vllm/v1/chat/completions", "sk-wrong", "POST", "{}")
            wait_until(lambda: metric(gateway.port, "delivered_total", "my_callbacks.logger") == 2)
            assert gateway.terminate() == 0
        told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
        assert [each["total_tokens"] for each in told] == [7, 7]
        (tmp_path / "gateway.yaml").write_text("litellm_settings: {callbacks: [my_callbacks.guard]}")
        refused = MeasuredGateway(tmp_path, server.port, settings="litellm_settings: {callbacks: [my_callbacks.guard]}")
        refused.wait()
        assert "has async_pre_call_hook, which may refuse or change requests" in refused.stdout + refused.stderr
