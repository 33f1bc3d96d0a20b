"""Backups of PostgreSQL with pg_dump, put back with pg_restore and psql, and the spool beside them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from tests.cli.backups import QUIET, done, refused, restore_elsewhere, settle
from tests.end_to_end.many_callers import PRICED, Callers, make_keys, serve
from tests.end_to_end.process_harness import MeasuredGateway, served
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, environment
from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.backup.making import make_archive, unpacked
from tests.whole_ledger import check_ledger
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.backup import postgresql_restore
from twisted_vllm.storage.backup.journal import begin
from twisted_vllm.storage.backup.place import Place
from twisted_vllm.storage.backup.postgresql import variables_of
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "gateway.yaml").write_text(f"passthrough: {{{QUIET}}}\n")
    return tmp_path


def back_up(place: Path, url: str, name: str = "b.tar.gz") -> Path:
    done(place, "backup", "--config", "gateway.yaml", "--output", name, DATABASE_URL=url)
    return place / name


def tables(url: str) -> dict[str, list[str]]:
    """Return the names of all tables by their schema."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(url) as connection:
        statement = "SELECT schemaname, tablename FROM pg_tables WHERE tablename LIKE 'vllm%' ORDER BY 1, 2"
        for schema, table in connection.execute(statement):
            found.setdefault(schema, []).append(table)
    return found


def prepare(url: str) -> None:
    engine = make_engine(parse_url(Secret(url)), connections=1)
    migrate(engine)
    engine.dispose()


def test_each_request_before_a_backup_under_load_is_there_once_after_a_restore(
    place: Path, postgresql: PrivatePostgresql, postgresql_url: str
) -> None:
    make_keys(postgresql_url)
    callers = Callers(pause=0.001)
    serving = place / "serving"
    serving.mkdir()
    with (
        served(serve) as server,
        MeasuredGateway(serving, server.port, passthrough=PRICED, DATABASE_URL=postgresql_url) as gateway,
        callers.calling([gateway.port]),
    ):
        try:
            time.sleep(1.0)
            acknowledged = set(callers.seen)
            backup = back_up(serving, postgresql_url)
        finally:
            callers.stop.set()
    found = unpacked(backup)
    assert found["database/postgresql.dump"].startswith(b"PGDMP")
    another = postgresql.make_database()
    restore_elsewhere(backup, place / "restored", DATABASE_URL=another)
    settle(place / "restored", DATABASE_URL=another)
    ids = Counter(row.id for row in check_ledger(another))
    assert set(ids.values()) == {1}
    assert acknowledged <= set(ids) <= set(callers.seen)
    assert len(acknowledged) > 100


def test_no_password_is_in_the_arguments_of_a_program(
    place: Path, postgresql: PrivatePostgresql, postgresql_url: str
) -> None:
    """A pg_dump in front of the real one notes its arguments and the names of its variables."""
    prepare(postgresql_url)
    programs = place / "programs"
    programs.mkdir()
    for name in ("pg_dump", "pg_restore", "psql"):
        real = shutil.which(name)
        assert real is not None
        wrapper = programs / name
        wrapper.write_text(f'#!/bin/sh\necho "$@" >> {place}/arguments\nenv >> {place}/variables\nexec {real} "$@"\n')
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    path = f"{programs}:{os.environ['PATH']}"
    done(place, "backup", "--output", "b.tar.gz", DATABASE_URL=postgresql_url, PATH=path)
    another = postgresql.make_database()
    done(place, "restore", "b.tar.gz", DATABASE_URL=another, PATH=path)
    arguments = (place / "arguments").read_text()
    assert arguments.count("--snapshot=") == 1
    assert "--file=-" in arguments
    assert postgresql.password not in arguments
    assert f"PGPASSWORD={postgresql.password}\n" in (place / "variables").read_text()


def test_what_is_there_is_refused_and_with_force_it_goes_into_a_schema_of_its_own(
    place: Path, postgresql_url: str
) -> None:
    prepare(postgresql_url)
    backup = back_up(place, postgresql_url)
    before = tables(postgresql_url)["public"]
    said = refused(place, "restore", backup, DATABASE_URL=postgresql_url)
    assert f"the database has {len(before)} tables of a gateway already: name an empty one, or add --force" in said
    done(place, "restore", backup, "--force", DATABASE_URL=postgresql_url)
    after = tables(postgresql_url)
    assert after.pop("public") == before
    [(schema, moved)] = after.items()
    assert schema.startswith("vllm_passthrough_before_")
    assert moved == before
    with MeasuredGateway(place, 9, DATABASE_URL=postgresql_url) as gateway:
        assert ask(gateway.port, "/key/list", MASTER_KEY)[0] == 200
        said = refused(place, "restore", backup, "--force", DATABASE_URL=postgresql_url)
        assert "gateways have" in said or "is in use" in said


def test_a_dump_that_fails_in_the_middle_leaves_the_database_as_it_was(place: Path, postgresql_url: str) -> None:
    prepare(postgresql_url)
    content = unpacked(back_up(place, postgresql_url))["database/postgresql.dump"]
    before = tables(postgresql_url)
    broken = make_archive(
        place / "broken.tar.gz",
        {"database/postgresql.dump": content[: len(content) * 2 // 3]},
        database="postgresql",
        namespace="public",
    )
    said = refused(place, "restore", broken, "--force", DATABASE_URL=postgresql_url)
    assert "pg_restore failed: " in said
    assert tables(postgresql_url) == before
    assert not list(place.glob("vllm_passthrough.spool/*"))


@pytest.mark.parametrize("committed", [False, True])
def test_a_restore_that_was_killed_counts_if_the_database_has_it(
    committed: bool, place: Path, postgresql_url: str
) -> None:
    """The journal is written before the transaction, which has its token."""
    prepare(postgresql_url)
    spool = place / "vllm_passthrough.spool"
    stage = spool / ".restoring-0"
    stage.mkdir(parents=True)
    (stage / "f00d-000001.spool").write_bytes(b"vllm-passthrough-spool 2\n")
    move = (str(stage / "f00d-000001.spool"), str(spool / "f00d-000001.spool"))
    begin(spool / "restoring.json", [move], [str(stage)], None, token="abc")
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        token = b"abc" if committed else b"of the restore before"
        connection.execute(b"COMMENT ON TABLE vllm_passthrough_schema IS 'restored " + token + b"'")
    engine = make_engine(parse_url(Secret(postgresql_url)), connections=1)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
        postgresql_restore.finish_at_start(spool, connection)
    engine.dispose()
    assert (spool / "f00d-000001.spool").exists() == committed
    assert not (spool / "restoring.json").exists()
    with MeasuredGateway(place, 9, DATABASE_URL=postgresql_url) as gateway:
        assert gateway.terminate() == 0


def test_a_gateway_finishes_a_restore_that_was_killed_when_it_starts(place: Path, postgresql_url: str) -> None:
    prepare(postgresql_url)
    spool = place / "vllm_passthrough.spool"
    spool.mkdir()
    begin(spool / "restoring.json", [], [], None, token="abc")
    with MeasuredGateway(place, 9, DATABASE_URL=postgresql_url) as gateway:
        assert not (spool / "restoring.json").exists()
        assert gateway.terminate() == 0


def test_what_cannot_be_is_one_line(place: Path, postgresql: PrivatePostgresql, postgresql_url: str) -> None:
    said = refused(place, "backup", "--output", "b.tar.gz", DATABASE_URL=postgresql_url)
    assert "The database is not one of vllm-passthrough" in said
    wrong = postgresql.url("nobody_made_it")
    said = refused(place, "backup", "--output", "b.tar.gz", DATABASE_URL=wrong)
    assert "The database cannot be reached" in said
    assert postgresql.password not in said
    said = refused(place, "backup", "--output", "b.tar.gz", DATABASE_URL=f"{postgresql_url}&load_balance_hosts=random")
    assert "has the parameter load_balance_hosts, which pg_dump cannot be told" in said
    prepare(postgresql_url)
    backup = back_up(place, postgresql_url)
    said = refused(place, "restore", backup)
    assert "it is of PostgreSQL, and the configuration names SQLite" in said
    assert sorted(os.listdir(place)) == ["b.tar.gz", "gateway.yaml"]


def test_a_machine_without_pg_dump_is_told_which_package(place: Path, postgresql_url: str, tmp_path: Path) -> None:
    prepare(postgresql_url)
    script = (
        "import sys; from twisted_vllm.storage.backup import postgresql; "
        "original = postgresql.Programs.__init__\n"
        "def without(self, url):\n    original(self, url)\n    self._places = []\n"
        "postgresql.Programs.__init__ = without\n"
        "from twisted_vllm.cli.main import main; main(sys.argv[1:], prog_name='vllm-passthrough')"
    )
    (tmp_path / "nothing").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", script, "backup", "--output", "b.tar.gz"],
        cwd=place,
        env=environment(
            PATH=str(tmp_path / "nothing"), DATABASE_URL=postgresql_url, HOSTED_VLLM_API_BASE="http://127.0.0.1:9"
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "is not installed: install PostgreSQL's client programs" in ended.stderr
    assert "apt-get install postgresql-client-" in ended.stderr


def test_each_part_of_a_url_reaches_the_programs() -> None:
    url = parse_url(
        Secret("postgresql://u:p%40w@h:5433/n?sslmode=verify-full&sslrootcert=/ca.pem&schema=s&connection_limit=5")
    )
    found = variables_of(url)
    assert {name: value for name, value in found.items() if name != "PGAPPNAME"} == {
        "PGHOST": "h",
        "PGPORT": "5433",
        "PGUSER": "u",
        "PGPASSWORD": "p@w",
        "PGDATABASE": "n",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
        "PGCONNECT_TIMEOUT": "10",
        "PGOPTIONS": '-c search_path="s"',
    }
    assert Place.of(None, None).journal is None
