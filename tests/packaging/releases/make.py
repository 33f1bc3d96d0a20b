"""Makes the fixture of a version by running it: ``make release-fixture VERSION=1.2.3 REF=v1.2.3``.

It needs git, the program faketime and PostgreSQL. The version's gateway runs three times, in three months of a clock
that is set, and is killed the third time, with rows in its spool that the database does not have. All keys are of the
fixture alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg

from benchmarks.free_ports import free_port
from benchmarks.postgresql import PostgresqlServer, find_binaries
from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import served
from tests.end_to_end.twistd_harness import answers, ask, command
from tests.packaging.releases.fixture import (
    CONFIGURATION,
    DUMP,
    EXPECTED,
    MASTER_KEY,
    POSTGRESQL,
    RELEASES,
    SALT_KEY,
    SQLITE,
    Expected,
    Key,
    files_below,
    pack,
)

REPOSITORY = Path(__file__).parents[3]
#: when its gateway runs
TIMES = ("2026-09-12 10:00:00", "2026-10-20 12:00:00", "2026-11-28 08:30:00")
#: requests of each key in each run, and of the first at the end, after which the gateway is killed
REQUESTS, LAST = 20, 60
#: seconds to wait for a start or an end
PATIENCE = 60.0
#: how often a gateway may be too quick: it is to be killed before it has added up the last requests
ATTEMPTS = 5
#: what `serve` answers each request
TOKENS, MICRODOLLARS = 7, 7

#: the configuration; each value of it means the same in all versions
SETTINGS = """\
model_list:
  - model_name: small
    litellm_params:
      model: hosted_vllm/small
      api_base: os.environ/FIXTURE_SERVER
      input_cost_per_token: 0.000001
      output_cost_per_token: 0.000001
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  store_model_in_db: true
litellm_settings:
  drop_params: true
passthrough:
  log: {file: gateway.log, format: json}
  drain_timeout: 5
  ledger: {usage_retention: null}
"""

TEAM = {"team_id": "physics", "team_alias": "Physics", "max_budget": 100.0}
USER = {"user_id": "ada", "user_alias": "Ada", "max_budget": 50.0, "auto_create_key": False}
#: fields of each key, by its alias
KEYS: Mapping[str, Mapping[str, object]] = {
    "ada": {"user_id": "ada", "team_id": "physics", "tags": ["notebook"], "metadata": {"room": 7}},
    "service": {"team_id": "physics", "models": ["small"]},
    "slow": {"rpm_limit": 3},
    "poor": {"max_budget": 0.00007},
    "blocked": {},
}
#: what a key meets after the upgrade: statuses, the last error, and the model it asks for
MEETS: Mapping[str, tuple[tuple[int, ...], str, str]] = {
    "ada": ((200, 200), "", "small"),
    "service": ((200, 403), "model_not_allowed", "large"),
    "slow": ((200, 200, 200, 429), "rate_limit_exceeded", "small"),
    "poor": ((429,), "budget_exceeded", "small"),
    "blocked": ((401,), "blocked_api_key", "small"),
}
MODEL = {
    "model_name": "large",
    "litellm_params": {
        "model": "hosted_vllm/large",
        "api_base": "http://127.0.0.1:9",
        "api_key": "key-of-a-server-that-is-not-there",
        "input_cost_per_token": 0.000001,
        "output_cost_per_token": 0.000001,
    },
}


def key_of(alias: str) -> str:
    """Return the value of a key."""
    return f"sk-fixture-{alias}-00000000"


class Run:
    """A version's gateway, started at a time of a clock that is set."""

    def __init__(self, checkout: Path, directory: Path, moment: str, variables: Mapping[str, str]) -> None:
        self._offset = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() - time.time()
        self.port = free_port()
        self._process = subprocess.Popen(
            [
                *command("-n", "--pidfile=", "vllm-passthrough", f"--config={CONFIGURATION}"),
                f"--listen=tcp:{self.port}:interface=127.0.0.1",
            ],
            cwd=directory,
            env={**environment(checkout, variables), **clock(moment)},
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + PATIENCE
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"The gateway of {checkout} did not start")
            time.sleep(0.05)

    @property
    def moment(self) -> datetime:
        """Its time."""
        return datetime.fromtimestamp(time.time() + self._offset, UTC)

    def admin(self, path: str, body: object) -> None:
        """Call the admin API, which must succeed."""
        status, text = ask(self.port, path, MASTER_KEY, "POST", json.dumps(body))
        if status != 200:
            raise SystemExit(f"{path} was answered {status}: {text}")

    def request(self, alias: str) -> int:
        """Send a request with a key; return the status."""
        body = {"model": "small", "messages": [], "max_tokens": 4, "user": f"customer-{alias}"}
        return ask(self.port, "/v1/chat/completions", key_of(alias), "POST", json.dumps(body))[0]

    def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait for the end."""
        self._process.send_signal(number)
        if self._process.wait(PATIENCE) != (0 if number == signal.SIGTERM else -number):
            raise SystemExit(f"The gateway ended with {self._process.returncode}")


def clock(moment: str) -> dict[str, str]:
    """Return the variables that set a process's clock; the one that measures durations runs as ever."""
    # faketime itself would stay between us and the gateway
    asked = subprocess.run(["faketime", "-f", f"@{moment}", "env"], capture_output=True, text=True, check=True).stdout
    found = dict(line.split("=", 1) for line in asked.splitlines() if line.startswith(("LD_PRELOAD=", "FAKETIME=")))
    return {**found, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"}


def environment(checkout: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a version runs."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(checkout),
        "LITELLM_MASTER_KEY": MASTER_KEY,
        "VLLM_PASSTHROUGH_SALT_KEY": SALT_KEY,
        **variables,
    }


def use(checkout: Path, directory: Path, variables: Mapping[str, str]) -> tuple[Counter[str], Counter[str], float]:
    """Run a version in its three months; return its requests by month and by key, and when it was killed."""
    months: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for number, moment in enumerate(TIMES):
        run = Run(checkout, directory, moment, variables)
        if number == 0:
            run.admin("/team/new", TEAM)
            run.admin("/user/new", USER)
            run.admin("/model/new", MODEL)
            for alias, fields in KEYS.items():
                run.admin("/key/generate", {"key": key_of(alias), "key_alias": alias, **fields})
        for alias in KEYS:
            for _ in range(REQUESTS if alias != "blocked" or number == 0 else 0):
                sent = run.moment
                if run.request(alias) == 200:
                    months[f"{sent:%Y-%m}"] += 1
                    keys[alias] += 1
        if number == 0:
            run.admin("/key/block", {"key": key_of("blocked")})
        if number < len(TIMES) - 1:
            run.end(signal.SIGTERM)
            continue
        for _ in range(LAST):
            if run.request("ada") != 200:
                raise SystemExit("A request of the last ones failed")
            months[f"{run.moment:%Y-%m}"] += 1
            keys["ada"] += 1
        run.end(signal.SIGKILL)
    return months, keys, run.moment.timestamp()


def checked_out(ref: str, place: Path) -> tuple[Path, str]:
    """Put the files of a commit into a directory; return that, and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", f"{ref}^{{commit}}"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(place, filter="data")
    return place, commit


def warnings_of(checkout: Path, directory: Path, variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a version says of the configuration."""
    done = subprocess.run(
        command("-n", "--pidfile=", "vllm-passthrough", f"--config={CONFIGURATION}", "--check"),
        cwd=directory,
        env=environment(checkout, variables),
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(line for line in done.stdout.splitlines() if "warning" in line)


@contextmanager
def server_of_postgresql() -> Iterator[PostgresqlServer]:
    """Run a private PostgreSQL."""
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL's server programs are not installed")
    place = Path(tempfile.mkdtemp(prefix="fixture-postgresql-"))
    server = PostgresqlServer(binaries, place, "fixture", ("fsync=off",))
    try:
        server.initialise()
        server.start()
        server.execute("CREATE DATABASE fixture")
        yield server
    finally:
        server.stop()
        shutil.rmtree(place, ignore_errors=True)


def one(statement: str, main: Path | None, url: str) -> str:
    """Return what a statement finds first, in SQLite's file or in PostgreSQL."""
    if main is not None:
        # a copy: opening it here would write the log of the killed process back
        with tempfile.TemporaryDirectory() as place:
            for each in main.parent.glob(f"{main.name}*"):
                if each.is_file():
                    shutil.copy(each, place)
            with closing(sqlite3.connect(Path(place) / main.name)) as connection:
                return str(connection.execute(statement).fetchone()[0])
    with psycopg.connect(url) as database:
        [(found,)] = database.execute(statement.encode()).fetchall()
        return str(found)


def make(version: str, kind: str, checkout: Path, commit: str, server: int) -> Expected | None:
    """Make one kind of fixture of a version; return what has to be true of it, None if nothing waits in its spool."""
    with tempfile.TemporaryDirectory() as place, _database(kind) as (database, url):
        directory = Path(place)
        (directory / CONFIGURATION).write_text(SETTINGS)
        variables = {"FIXTURE_SERVER": f"http://127.0.0.1:{server}", **({"DATABASE_URL": url} if url else {})}
        months, keys, ended = use(checkout, directory, variables)
        main = None if url else directory / "twisted_vllm.sqlite3"
        schema = one("SELECT version_num FROM vllm_passthrough_schema", main, url)
        audit = int(one("SELECT count(*) FROM vllm_passthrough_audit", main, url))
        marked = one("SELECT coalesce(sum(spend), 0) FROM vllm_passthrough_spend WHERE kind = 'key'", main, url)
        spool = directory / ("vllm_passthrough.spool" if url else "twisted_vllm.sqlite3.spool")
        segments = list(spool.glob("*.spool"))
        waiting = sum(keys.values()) - int(marked) // (MICRODOLLARS * 10**6)
        if not segments or not waiting:
            return None
        if database is not None:
            (directory / DUMP).write_text(_dump(database, url))
        names = [name for name in files_below(directory) if not name.endswith((".log", "-shm", CONFIGURATION))]
        pack(directory, names, RELEASES / version / kind)
        return Expected(
            version=version,
            commit=commit,
            schema=schema,
            keys=tuple(Key(alias, key_of(alias), keys[alias] * MICRODOLLARS, *MEETS[alias]) for alias in KEYS),
            months=dict(sorted(months.items())),
            waiting=waiting,
            audit=audit,
            teams={"physics": (keys["ada"] + keys["service"]) * MICRODOLLARS},
            warnings=warnings_of(checkout, directory, variables),
            microdollars=MICRODOLLARS,
            tokens=TOKENS,
            ended=int(ended),
        )


@contextmanager
def _database(kind: str) -> Iterator[tuple[PostgresqlServer | None, str]]:
    if kind == SQLITE:
        yield None, ""
        return
    with server_of_postgresql() as server:
        yield server, server.url("fixture")


def _dump(server: PostgresqlServer, url: str) -> str:
    binaries = find_binaries()
    assert binaries is not None
    options = ["--inserts", "--rows-per-insert=100", "--no-comments", "--no-owner", "--no-privileges"]
    dumped = subprocess.run([str(binaries / "pg_dump"), *options, url], capture_output=True, text=True, check=True)
    # psql's own commands, which no server takes
    return "".join(line for line in dumped.stdout.splitlines(keepends=True) if not line.startswith("\\"))


def main() -> int:
    """Make the fixture that the arguments name."""
    parser = argparse.ArgumentParser(prog="make release-fixture", description=__doc__.partition("\n")[0])
    parser.add_argument("version", help="its name, such as 1.2.3")
    parser.add_argument("ref", help="the commit or tag to run")
    options = parser.parse_args()
    if shutil.which("faketime") is None:
        print(
            "make release-fixture: the program faketime is missing (Debian: apt-get install faketime)", file=sys.stderr
        )
        return 2
    found: dict[str, Expected] = {}
    (RELEASES / options.version).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, served(serve) as server:
        checkout, commit = checked_out(options.ref, Path(place))
        for kind in (SQLITE, POSTGRESQL):
            made = next(
                filter(None, (make(options.version, kind, checkout, commit, server.port) for _ in range(ATTEMPTS)))
            )
            found[kind] = made
            size = (RELEASES / options.version / kind).stat().st_size
            print(f"{options.version}/{kind}: {size:,} bytes, {made.requests} requests, {made.waiting} not added up")
    text = msgspec.json.format(msgspec.json.encode(found)) + b"\n"
    (RELEASES / options.version / EXPECTED).write_bytes(text)
    (RELEASES / options.version / CONFIGURATION).write_text(SETTINGS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
