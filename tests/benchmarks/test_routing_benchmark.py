"""The routing benchmark says what it measured, over servers that are what they say."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.client import Target
from benchmarks.processes import CannotStart, ask
from benchmarks.routing.__main__ import main
from benchmarks.routing.contestants import Fleet, contestants
from benchmarks.routing.doors import doors
from benchmarks.routing.options import parse
from benchmarks.routing.run import measure
from benchmarks.routing.scenarios import HOT, SCENARIOS, Scenario, Talk
from benchmarks.routing.servers import Counters, outcome, read_counters
from benchmarks.routing.talking import Load, percentile

LOAD = Load("m", 6, 3, 2, 1)
EXPOSITION = """
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 60.0
vllm:prefix_cache_hits_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 75.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 25.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 2.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0
"""


class FakeVllm:
    """Answers chats, counts half of each prompt as found, and has a cache to reset."""

    def __init__(self, *, can_reset: bool = True) -> None:
        self.asked: list[dict[str, Any]] = []
        self.resets = 0
        self.can_reset = can_reset
        self.counts: Counter[str] = Counter()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                names = ("prefix_cache_hits", "prefix_cache_queries", "request_success")
                lines = [f'vllm:{name}_total{{engine="0"}} {fake.counts[name]}.0' for name in names]
                self.answer("\n".join(lines).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                if self.path == "/reset_prefix_cache":
                    fake.resets += 1
                    self.answer(b'{"success":true}', 200 if fake.can_reset else 404)
                    return
                if self.path == "/v1/completions":
                    self.answer(b"{}")
                    return
                fake.asked.append(json.loads(body))
                fake.counts.update(prefix_cache_hits=5, prefix_cache_queries=10, request_success=1)
                words = ({"choices": [{"delta": {"content": text}}]} for text in ("a", " b"))
                self.answer(
                    b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in words) + b"data: [DONE]\n\n"
                )

            def answer(self, body: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # its end waits for them, so that no connection is left behind
        self._server.daemon_threads = False
        self.target = Target("127.0.0.1", self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def vllm(**options: bool) -> Iterator[FakeVllm]:
    fake = FakeVllm(**options)
    try:
        yield fake
    finally:
        fake.stop()


def test_users_are_in_equal_groups() -> None:
    groups = Counter(SCENARIOS["equal"].group_of(user) for user in range(SCENARIOS["equal"].users(24)))
    assert groups == dict.fromkeys(range(6), 4)


def test_the_hot_group_has_ten_times_the_users_of_another() -> None:
    users = SCENARIOS["hot"].users(24)
    groups = Counter(SCENARIOS["hot"].group_of(user) for user in range(users))
    assert groups == {0: 2 * HOT, **dict.fromkeys(range(1, 6), 2)}


def test_a_seed_says_the_same_each_time() -> None:
    def said(seed: int, user: int, group: int) -> list[dict[str, str]]:
        conversation = Talk(seed, user, group)
        conversation.ask()
        conversation.hear("Yes")
        conversation.ask()
        return conversation.messages

    assert said(1, 2, 3) == said(1, 2, 3)
    assert said(1, 2, 3)[0] == said(1, 4, 3)[0]
    assert said(1, 2, 3)[0] != said(1, 2, 4)[0]
    assert said(1, 2, 3)[1] != said(2, 2, 3)[1]
    assert [each["role"] for each in said(1, 2, 3)] == ["system", "user", "assistant", "user"]


def test_the_counters_of_all_engines_and_reasons_are_added() -> None:
    assert read_counters(EXPOSITION) == Counters(60, 100, 5)
    assert read_counters("") == Counters(0, 0, 0)


def test_the_outcome_is_of_all_servers_together() -> None:
    found = outcome([Counters(60, 100, 30), Counters(10, 100, 10)])
    assert (found.hit_ratio, found.busiest) == (0.35, 0.75)
    assert outcome([Counters(0, 0, 0)]).hit_ratio is None


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile(list(map(float, range(100))), 99) == 99.0
    assert percentile([], 50) is None


def test_a_door_passes_breaks_and_passes_again() -> None:
    with vllm() as fake, doors([fake.target]) as (door,):
        port = door.target.port
        assert ask("127.0.0.1", port, "GET", "/metrics")[0] == 200
        with socket.create_connection(("127.0.0.1", port), timeout=10) as held:
            held.sendall(b"GET ")
            door.shut()
            with pytest.raises(ConnectionResetError):
                held.recv(1)
        with pytest.raises(ConnectionRefusedError):
            ask("127.0.0.1", port, "GET", "/metrics")
        door.open()
        assert ask("127.0.0.1", port, "GET", "/metrics")[0] == 200


def test_a_run_begins_with_empty_caches_and_tells_what_came(tmp_path: Path) -> None:
    with vllm() as one, vllm() as two:
        fleet = Fleet([one.target, two.target], "m")
        row = measure(contestants(None)["alone"], fleet, SCENARIOS["equal"], LOAD, tmp_path)
    assert (one.resets, two.resets) == (1, 1)
    assert (row["hit"], row["share"], row["refused"], row["cut"], row["turns"]) == (0.5, 100.0, 0, 0, 18)
    assert row["p50"] is not None
    longest = max(one.asked, key=lambda body: len(body["messages"]))
    assert [each["content"] for each in longest["messages"] if each["role"] == "assistant"] == ["a b", "a b"]
    assert longest["stream"] is True


def test_a_server_that_leaves_refuses_and_has_no_share_while_it_is_away(tmp_path: Path) -> None:
    @contextmanager
    def last(fleet: Fleet, _: Path) -> Iterator[Target]:
        yield fleet.servers[-1]

    with vllm() as one, vllm() as two:
        fleet = Fleet([one.target, two.target], "m")
        scenario = Scenario("leaves", leaves=True)
        row = measure(last, fleet, scenario, Load("m", 1, 6, 2, 1), tmp_path)
    assert (row["refused"], row["share"], len(two.asked)) == (2, 100.0, 4)
    # once before all, and once before it is back
    assert (one.resets, two.resets) == (1, 2)


def test_a_server_whose_cache_cannot_be_emptied_is_refused(tmp_path: Path) -> None:
    with vllm(can_reset=False) as fake:
        fleet = Fleet([fake.target], "m")
        with pytest.raises(CannotStart, match="VLLM_SERVER_DEV_MODE=1"):
            measure(contestants(None)["alone"], fleet, SCENARIOS["equal"], LOAD, tmp_path)


def test_events_that_are_not_named_leave_out_who_needs_them(capsys: pytest.CaptureFixture[str]) -> None:
    with vllm() as fake:
        url = f"http://127.0.0.1:{fake.target.port}"
        arguments = [url, "--model", "m", "--users", "2", "--turns", "1", "--scenario", "equal", "--router", "/nowhere"]
        arguments += ["--contestant", "alone", "--contestant", "gateway prefix+events", "--rounds", "2"]
        assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "equal, 1 servers, 2 users, 1 turns, median of 2:" in output
    assert "alone 0.500/100% 0.500/100%" in output
    assert "gateway prefix+events was not measured: it needs the servers' events (--events)" in output
    assert "vllm-router was not measured" in output


def test_a_contestant_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["http://127.0.0.1:1", "--model", "m", "--contestant", "router magic", "--router", "/nowhere"]
    assert main(arguments) == 1
    assert "there is no router magic here; there are alone, gateway prefix" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["https://gpu:8000"],
        ["http://gpu:8000", "--users", "0"],
        ["http://gpu:8000", "http://gpu:8001", "--events", "tcp://gpu:5557"],
        ["http://gpu:8000", "--scenario", "quiet"],
    ],
)
def test_a_command_line_that_cannot_be_used_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(arguments, {})
    assert refused.value.code == 2


def test_servers_and_events_may_be_named_in_turns() -> None:
    arguments = ["http://a:1", "--events", "tcp://a:5557,tcp://a:5558", "http://b:1", "--events", "tcp://b:5557"]
    options = parse(arguments, {"VLLM_API_KEY": "sk-server"})
    assert [each.host for each in options.servers] == ["a", "b"]
    assert [each.replay for each in options.events] == ["tcp://a:5558", None]
    assert options.servers[0].key == "sk-server"
    assert [each.name for each in options.scenarios] == list(SCENARIOS)
