"""Gateways of two releases on one database: the older serves while the newer migrates, and may be started again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from benchmarks.free_ports import free_port
from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import MeasuredGateway, served
from tests.end_to_end.twistd_harness import MASTER_KEY, REPOSITORY, ask, command, environment, run
from tests.storage.expanding import faults_of, statements_of
from tests.storage.migrations import scripts
from tests.storage.next_version import CONTRACTED, EXPANDED, FURTHER, make_next
from tests.whole_ledger import check_ledger
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import HEAD
from twisted_vllm.storage.schema_steps import steps_of

#: seconds of load before and after each step of an upgrade
WHILE = 1.0
ARGUMENTS = ("-n", "--pidfile=", "vllm-passthrough", "--config=gateway.yaml")


def environment_for(url: str) -> dict[str, str]:
    return {"DATABASE_URL": url, "LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_next(tmp_path_factory.mktemp("next")))


@pytest.fixture(scope="module")
def further_version(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_next(tmp_path_factory.mktemp("further"), further=True))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:////{tmp_path}/keys.sqlite"
    return str(request.getfixturevalue("postgresql_url"))


@contextmanager
def load(callers: Callers, ports: list[int], threads: int) -> Iterator[None]:
    """Call during a block, and stop at its end, also if it fails."""
    with callers.calling(ports, threads):
        try:
            yield
        finally:
            callers.stop.set()


def values(url: str, statement: str) -> list[object]:
    engine = make_engine(parse_url(Secret(url)), connections=1)
    try:
        with engine.connect() as connection:
            return list(connection.execute(text(statement)).scalars())
    finally:
        engine.dispose()


def ledger_of(url: str, version: str) -> list[str]:
    """Return the ids of the ledger's rows, as a version that knows the schema reads and checks them."""
    script = (
        "import sys; from tests.whole_ledger import check_ledger; print(*(row.id for row in check_ledger(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, url],
        # -c looks into the working directory first
        cwd=version,
        env=environment(PYTHONPATH=f"{version}:{REPOSITORY}"),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def schema_of(url: str) -> object:
    [revision] = values(url, "SELECT version_num FROM vllm_passthrough_schema")
    return revision


def make_key(gateway: MeasuredGateway, alias: str) -> None:
    status, body = ask(gateway.port, "/key/generate", MASTER_KEY, "POST", json.dumps({"key_alias": alias}))
    assert status == 200, body


def told(directory: Path) -> list[str]:
    """Return the warnings and errors of a gateway's log, without those about its settings."""
    lines = [json.loads(line) for line in (directory / "gateway.log").read_text().splitlines()]
    return [str(line) for line in lines if line.get("level") in ("error", "critical")]


def test_the_older_release_serves_while_the_next_expands_and_until_it_contracts(
    tmp_path: Path, url: str, next_version: str
) -> None:
    older_directory, newer_directory = tmp_path / "older", tmp_path / "newer"
    older_directory.mkdir()
    newer_directory.mkdir()
    make_keys(url)
    callers = Callers(pause=0.002)
    environment_of = environment_for(url)
    with served(serve) as server, ExitStack() as stack:

        def start(directory: Path, **variables: str) -> MeasuredGateway:
            return stack.enter_context(
                MeasuredGateway(directory, server.port, passthrough=PRICED, DATABASE_URL=url, **variables)
            )

        older = start(older_directory)
        assert schema_of(url) == HEAD
        with load(callers, [older.port], 3):
            time.sleep(WHILE)
            newer = start(newer_directory, PYTHONPATH=next_version)
            assert schema_of(url) == EXPANDED
            with load(callers, [newer.port], 3):
                for gateway, alias in ((older, "of-older"), (newer, "of-newer")):
                    make_key(gateway, alias)
                time.sleep(WHILE)
        # The older release restarts on the newer schema, as on a machine that is not upgraded yet, or as a rollback.
        assert older.terminate() == 0
        older = start(older_directory)
        make_key(older, "of-older-again")
        callers.stop.clear()
        with load(callers, [older.port, newer.port], 4):
            time.sleep(WHILE)
        assert older.terminate() == 0
        # It has gone: the next release takes away what only that needed, while it serves.
        callers.stop.clear()
        with load(callers, [newer.port], 3):
            done = run(newer_directory, *ARGUMENTS, "--migrate", "contract", **environment_of, PYTHONPATH=next_version)
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"schema {CONTRACTED}. Versions from schema {EXPANDED} on work with it." in done.stdout
            make_key(newer, "of-newer-alone")
            time.sleep(WHILE)
        assert newer.terminate() == 0
        newer = start(newer_directory, PYTHONPATH=next_version)
        assert newer.terminate() == 0
    assert callers.refused == []
    assert told(older_directory) == told(newer_directory) == []
    ids = ledger_of(url, next_version)
    assert len(ids) == len(set(ids))
    assert set(callers.seen) <= set(ids)
    origins = values(url, "SELECT origin FROM vllm_passthrough_changes ORDER BY revision")
    assert origins[-4:] == ["older", "next", "older", "next"]
    refused = run(older_directory, *ARGUMENTS, **environment_of)
    assert refused.returncode != 0
    assert f"has the schema '{CONTRACTED}', which is newer than '{HEAD}'" in refused.stdout + refused.stderr


def test_a_release_that_needs_the_contraction_says_what_to_run_and_leaves_the_schema(
    tmp_path: Path, url: str, further_version: str
) -> None:
    make_keys(url)
    (tmp_path / "gateway.yaml").write_text("")
    variables = environment_for(url) | {"PYTHONPATH": further_version}
    listen = f"--listen=tcp:{free_port()}:interface=127.0.0.1"
    refused = run(tmp_path, *ARGUMENTS, listen, **variables)
    assert refused.returncode != 0
    said = refused.stdout + refused.stderr
    assert f"The schema '{CONTRACTED}' takes away what older gateways need" in said
    assert f"none older than the schema '{EXPANDED}' runs" in said
    assert "--migrate contract" in said
    assert schema_of(url) == HEAD
    for kind, status, schema in (("expand", 1, HEAD), ("contract", 0, FURTHER), ("expand", 0, FURTHER)):
        done = run(tmp_path, *ARGUMENTS, "--migrate", kind, **variables)
        assert (done.returncode, schema_of(url)) == (status, schema), done.stdout + done.stderr


def test_a_table_in_use_delays_the_step_and_nobody_else(tmp_path: Path, postgresql_url: str, next_version: str) -> None:
    """A dump holds each table until it ends: who waits for it keeps others waiting, so it must not wait long."""
    make_keys(postgresql_url)
    callers = Callers(pause=0.002)
    variables = environment_for(postgresql_url) | {"PYTHONPATH": next_version}
    with (
        served(serve) as server,
        MeasuredGateway(tmp_path, server.port, passthrough=PRICED, DATABASE_URL=postgresql_url) as older,
        psycopg.connect(postgresql_url) as dump,
        load(callers, [older.port], 3),
    ):
        dump.execute("LOCK TABLE vllm_passthrough_changes IN ACCESS SHARE MODE")
        migrating = subprocess.Popen(
            command(*ARGUMENTS, "--migrate", "expand"), cwd=tmp_path, env=environment(**variables)
        )
        for number in range(8):
            began = time.monotonic()
            make_key(older, f"meanwhile-{number}")
            assert time.monotonic() - began < 4
            time.sleep(0.5)
        assert schema_of(postgresql_url) == HEAD
        dump.rollback()
        assert migrating.wait(30) == 0
        assert schema_of(postgresql_url) == EXPANDED
    assert callers.refused == []
    assert set(callers.seen) <= {row.id for row in check_ledger(postgresql_url)}


def test_steps_that_expand_leave_older_code_what_it_needs_on_postgresql(postgresql_url: str) -> None:
    steps = steps_of(script.module for script in scripts())
    for index, step in enumerate(steps):
        if step.is_declared and not step.contracts:
            engine = make_engine(parse_url(Secret(postgresql_url)), connections=1)
            with engine.begin() as connection:
                assert faults_of(statements_of(connection, steps[index - 1].revision, step.revision)) == []
                connection.rollback()
            engine.dispose()
