"""The growth table: its load, what it says of figures, and the command with a tiny deployment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import msgspec
import pytest

from benchmarks.growth.databases import SqliteDatabases
from benchmarks.growth.fill import fill
from benchmarks.growth.gateways import gateway
from benchmarks.growth.load import Requests, apply_load
from benchmarks.growth.population import Population, Size
from benchmarks.growth.reads import ReadCost
from benchmarks.growth.report import EMPTY, FULL, ONE, Cost, Growth, Step, WriterStep, markdown
from benchmarks.growth.run import PARTS, Plan
from benchmarks.growth.traffic import Spread
from benchmarks.growth.writer import RowCost, write_rows
from benchmarks.peers import own_upstream

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120.0
SIZE = Size(keys=7, users=2, teams=2, end_users=3, rows=50, months=1.0)

needs_wrk = pytest.mark.skipif(
    shutil.which("wrk") is None or not sys.platform.startswith("linux"), reason="needs wrk and /proc"
)


@attrs.frozen
class Server:
    """A server that keeps what it is asked.

    Attributes:
        port: where it listens.
        seen: the credential and the body of each request.
    """

    port: int
    seen: list[tuple[str, bytes]]


@pytest.fixture
def server() -> Iterator[Server]:
    seen: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.headers["authorization"], body))
            self.send_response(200 if self.path == "/vllm/v1/chat/completions" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield Server(listening.server_port, seen)
        listening.shutdown()
        thread.join()


@needs_wrk
def test_the_load_uses_each_key_and_names_each_end_user(server: Server) -> None:
    outcome = apply_load(server.port, Requests(keys=7, end_users=3), 1.0)
    assert outcome.complaint() is None
    assert outcome.requests > 0
    assert {credential for credential, _ in server.seen} == {f"Bearer {Population.key(number)}" for number in range(7)}
    users = {msgspec.json.decode(body)["user"] for _, body in server.seen}
    assert users == {Population.end_user(number) for number in range(3)}


@needs_wrk
def test_the_load_names_nobody_where_no_end_users_are_wanted(server: Server) -> None:
    apply_load(server.port, Requests(), 1.0)
    assert {credential for credential, _ in server.seen} == {f"Bearer {Population.key(0)}"}
    assert all("user" not in msgspec.json.decode(body) for _, body in server.seen)


@needs_wrk
def test_a_gateway_on_a_filled_database_answers_every_key(tmp_path: Path) -> None:
    databases = SqliteDatabases(tmp_path)
    url = databases.make("full")
    fill(url, SIZE, Spread(), now=1_790_000_000.0, progress=lambda text: None)
    place = tmp_path / "gateway"
    place.mkdir()
    with (
        own_upstream(tmp_path) as upstream,
        gateway(FULL, url, upstream, databases, place, ledger=True) as running,
    ):
        measured = running.measure(Requests(keys=SIZE.keys, end_users=SIZE.end_users), 1.0)
    assert measured.outcome.complaint() is None
    assert measured.settled
    assert measured.gateway_us is not None
    assert measured.gateway_us > 0
    assert measured.server_us is None
    # what was asked came into the ledger
    assert databases.weigh(url)["rows"] > measured.outcome.requests * 80


def test_the_writer_is_measured_with_rows_that_reach_the_database(tmp_path: Path) -> None:
    databases = SqliteDatabases(tmp_path)
    url = databases.make("empty")
    fill(url, attrs.evolve(SIZE, rows=0), Spread(), now=1_790_000_000.0, progress=lambda text: None)
    before = sum(databases.weigh(url).values())
    cost = write_rows(url, tmp_path / "spool", SIZE, named=0.5, rate=3_000, seconds=0.4)
    assert 300 < cost.rows <= 3_000
    assert cost.cpu_us > 0
    assert sum(databases.weigh(url).values()) > before


def growth() -> Growth:
    """What a run might find."""
    return Growth(
        "SQLite",
        SIZE.words(),
        rows=100,
        steps=[
            Step(
                1_000, 0, {ONE: Cost([50.0, 100.0, 60.0]), EMPTY: Cost([55.0, 110.0, 66.0]), FULL: Cost([60.0, 150.0])}
            ),
            Step(10_000, 5, {ONE: Cost([50.0]), FULL: Cost([70.0])}),
        ],
        writer=[WriterStep(10_000, 0, FULL, RowCost(1_000, 2.0, 25.1))],
        weights={"rows": 13_000, "sums": 30_000, "lookups": 100},
        megabytes={"full ledger, all keys in use": 250.0},
        reads=[
            ReadCost("/key/list", 3, 10.0, 301.0, 2.0),
            ReadCost("/audit", 3, 10.0, 300.0, 2.0, 504),
            ReadCost("/usage/report", 1, 10.0, 900.0, 2.0, whole=True),
        ],
        notes=["Something was noted."],
    )


def test_figures_stand_beside_their_goals() -> None:
    text = markdown(growth())
    # the ratios of the rounds are 1.2 and 1.5, and the goal is 1.2
    assert "| 1,000 | 0 | 60.0 µs | - | 66.0 µs | 1.10 | 105.0 µs | 1.35 | **not met** (≤ 1.2 times) |" in text
    assert "| 10,000 | 5 | 50.0 µs | - | - | - | 70.0 µs | 1.40 | met (≤ 1.6 times) |" in text
    assert "| 10,000 | 0 | full ledger | 1,000 | 500 | 25.1 µs | **not met** (≤ 25 µs) |" in text
    assert "| besides the rows | 301 | **not met** (≤ 300 bytes) |" in text
    assert "| full ledger, all keys in use | 250 | met (≤ 250 MB) |" in text
    assert "| /key/list | 3 | 10 | 301 | 2.0 | **not met** (≤ 300 ms) |" in text
    assert "| /audit | 3 | 10 | 300 | 2.0 | status 504 |" in text
    assert "| /usage/report | 1 | 10 | 900 | 2.0 | any size |" in text
    assert "1 of 2 miss the goal" in text
    assert text.endswith("- Something was noted.")


def test_a_report_survives_its_json() -> None:
    [read] = msgspec.json.decode(msgspec.json.encode([growth()]), type=list[Growth])
    assert markdown(read) == markdown(growth())


def test_only_keys_that_exist_are_counted_on() -> None:
    assert Plan(size=attrs.evolve(SIZE, keys=1_000), spread=Spread()).active() == [1, 100, 1_000]


@needs_wrk
def test_the_command_prints_what_it_is_asked_for(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    small = ["--keys=7", "--users=2", "--teams=2", "--end-users=3", "--rows=200", "--months=1"]
    short = ["--databases=sqlite", "--parts=bytes,reads", "--only=/key/info", "--read-times=2"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", *small, *short, f"--json={tmp_path}/growth.json"],
        cwd=REPOSITORY,
        env=kept | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "## SQLite: 7 keys, 2 users, 2 teams, 3 end users, 200 rows over 1 months" in done.stdout
    assert "| /key/info | 2 |" in done.stdout
    assert "status" not in done.stdout
    [growth] = msgspec.json.decode((tmp_path / "growth.json").read_bytes(), type=list[Growth])
    assert f"{markdown(growth)}\n\n" == done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["growth.json"]


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", "--parts=everything"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert all(part in done.stderr for part in PARTS)
