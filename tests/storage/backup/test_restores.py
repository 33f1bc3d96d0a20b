"""Restores of SQLite: what a place has afterwards, what is refused, and what a crash leaves."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.storage.backup.making import Files, fill, make_archive, requests_of, revision_of
from tests.storage.migrations import upgrade
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.backup.manifest import MAIN, BackupError
from twisted_vllm.storage.backup.place import holder_of
from twisted_vllm.storage.engine import begin, make_engine, parse_url
from twisted_vllm.storage.schema import HEAD, migrate
from twisted_vllm.usage.spool.format import read_lines
from twisted_vllm.usage.spool.segments import claim

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup of a gateway that has 20 requests in its database and 7 more in its spool."""
    fill(tmp_path / "gateway").back_up(tmp_path / "b.tar.gz")
    return tmp_path / "b.tar.gz"


@pytest.fixture
def empty(tmp_path: Path) -> Files:
    (tmp_path / "place").mkdir()
    return Files(tmp_path / "place")


@pytest.fixture
def full(tmp_path: Path) -> Files:
    return fill(tmp_path / "place", stored=6, waiting=2)


def refused(files: Files, backup: Path, **options: bool | str) -> str:
    """Return why a restore is refused, which changes nothing."""
    before = files.contents()
    with pytest.raises(BackupError) as error:
        files.restore(backup, **options)  # type: ignore[arg-type]  # each test names its own
    assert "\n" not in str(error.value)
    assert files.contents() == before
    assert list(files.directory.rglob(".restoring-*")) == []
    return str(error.value)


def test_a_restore_puts_everything_in_place_as_private_as_it_was(backup: Path, empty: Files, tmp_path: Path) -> None:
    assert empty.restore(backup) == ([], [])
    gateway = Files(tmp_path / "gateway")
    assert list(empty.contents()) == list(gateway.contents())
    assert empty.contents()["keys.sqlite.spool/f00d-000002.spool"] == (gateway.spool / "f00d-000002.spool").read_bytes()
    assert requests_of(empty) == 20
    assert {path.stat().st_mode & 0o777 for path in empty.directory.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (empty.usage, empty.spool)} == {0o700}


def test_a_place_that_has_something_is_refused(backup: Path, full: Files) -> None:
    assert refused(full, backup) == (
        f"{full.main} is there already, and 3 more files: name another place in the configuration, or add --force, "
        "which moves what is there aside and deletes nothing"
    )


@pytest.mark.parametrize("left", ["usage", "spool"])
def test_a_place_with_nothing_but_rows_is_not_empty(backup: Path, full: Files, left: str) -> None:
    full.main.unlink()
    shutil.rmtree(full.spool if left == "usage" else full.usage)
    assert "is there already" in refused(full, backup)


def test_an_empty_file_and_locks_of_former_processes_are_in_nobody_s_way(backup: Path, empty: Files) -> None:
    empty.main.touch()
    empty.spool.mkdir()
    (empty.spool / "beef.lock").touch()
    empty.restore(backup)
    assert requests_of(empty) == 20


def test_force_moves_what_is_there_aside_where_it_can_still_be_used(backup: Path, full: Files) -> None:
    before = full.contents()
    aside, _ = full.restore(backup, force=True)
    old = Files(full.directory)
    moved = full.directory / "keys.sqlite.before-restore-20260615T120000Z"
    assert sorted(aside) == sorted(
        [
            str(moved),
            *(f"{moved}-usage/2026-0{month}.db" for month in (5, 6)),
            f"{full.spool}.before-restore-20260615T120000Z/f00d-000002.spool",
        ]
    )
    assert [Path(path).read_bytes() for path in sorted(aside)] == [
        before[name]
        for name in (
            *("keys.sqlite", "keys.sqlite-usage/2026-05.db", "keys.sqlite-usage/2026-06.db"),
            "keys.sqlite.spool/f00d-000002.spool",
        )
    ]
    assert requests_of(old) == 20

    class Moved(Files):
        @property
        def main(self) -> Path:
            return moved

    assert requests_of(Moved(full.directory)) == 6


def test_the_log_of_a_database_that_was_killed_goes_aside_with_it(backup: Path, full: Files) -> None:
    """SQLite would apply it to the restored file."""
    left = full.directory / "keys.sqlite-wal"
    left.write_bytes(b"of the former file")
    aside, _ = full.restore(backup, force=True)
    assert f"{full.main}.before-restore-20260615T120000Z-wal" in aside
    assert not left.exists()
    assert requests_of(full) == 20


def test_files_of_the_spool_stay_where_that_is_wished_and_those_that_are_missing_come_back(
    backup: Path, full: Files
) -> None:
    (full.spool / "f00d-000003.spool").write_bytes(b"later\n")
    (full.spool / "f00d-000002.spool").unlink()
    full.restore(backup, force=True, keep_spool=True)
    assert (full.spool / "f00d-000003.spool").read_bytes() == b"later\n"
    assert (full.spool / "f00d-000002.spool").exists()
    again = (full.spool / "f00d-000002.spool").read_bytes() + b"grown\n"
    (full.spool / "f00d-000002.spool").write_bytes(again)
    shutil.rmtree(full.usage)
    full.main.unlink()
    full.restore(backup, keep_spool=True)
    assert (full.spool / "f00d-000002.spool").read_bytes() == again
    assert requests_of(full) == 20


def test_links_lead_to_the_disk_where_the_files_are(backup: Path, empty: Files, tmp_path: Path) -> None:
    (tmp_path / "disk" / "usage").mkdir(parents=True)
    empty.usage.symlink_to(tmp_path / "disk" / "usage")
    empty.main.symlink_to(tmp_path / "disk" / "real.sqlite")
    (tmp_path / "disk" / "real.sqlite-usage").symlink_to(tmp_path / "disk" / "usage")
    empty.restore(backup)
    assert empty.main.is_symlink()
    assert sorted(os.listdir(tmp_path / "disk" / "usage")) == ["2026-05.db", "2026-06.db"]
    assert requests_of(empty) == 20


def test_a_place_in_use_is_refused_even_with_force(backup: Path, full: Files) -> None:
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode = WAL').fetchall(); "
        "c.execute('SELECT * FROM vllm_passthrough_schema').fetchall(); print('open', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(full.main)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert holder_of(full.main) == other.pid
        said = refused(full, backup, force=True)
        assert said == f"{full.main} is in use by the process {other.pid}: stop the gateway first"
        other.communicate("\n")
    assert holder_of(full.main) is None


def test_a_spool_in_use_is_refused_even_with_force(backup: Path, full: Files) -> None:
    claimed = claim(full.spool, "beef")
    assert claimed is not None
    assert refused(full, backup, force=True) == f"{full.spool} is in use: stop the gateway first"
    claimed.release()


def sealed(tmp_path: Path, secret: str) -> Path:
    files = fill(tmp_path / "sealed")
    with closing(sqlite3.connect(files.main)) as other:
        other.execute(
            "INSERT INTO vllm_passthrough_models (model_id, model_name, litellm_params, model_info, api_key, "
            "created_at, created_by, updated_at, updated_by) VALUES ('m', 'm', '{}', '{}', 'v1.sealed', 0, '', 0, '')"
        )
        other.commit()
    manifest = files.back_up(tmp_path / "sealed.tar.gz", secret)
    assert manifest.sealed == 1
    assert secret not in manifest.seal
    return tmp_path / "sealed.tar.gz"


def test_another_salt_key_is_refused_and_with_force_it_is_a_warning(tmp_path: Path, empty: Files) -> None:
    archive = sealed(tmp_path, "salt of the backup")
    said = refused(empty, archive, secret="another salt")
    assert said.startswith("it has 1 keys of servers that are encrypted with another salt key")
    assert "another salt" not in said.replace("another salt key", "")
    assert "set VLLM_PASSTHROUGH_SALT_KEY to that of the backup, or add --force" in refused(empty, archive)
    _, warnings = empty.restore(archive, force=True, secret="another salt")
    [warning] = warnings
    assert "send each api_key again with POST /model/update" in warning


def test_the_same_salt_key_is_accepted_without_a_word(tmp_path: Path, empty: Files) -> None:
    assert empty.restore(sealed(tmp_path, "salt of the backup"), secret="salt of the backup") == ([], [])


def test_a_backup_without_encrypted_keys_holds_nothing_of_the_salt_key(tmp_path: Path, empty: Files) -> None:
    manifest = fill(tmp_path / "gateway").back_up(tmp_path / "b.tar.gz", "salt")
    assert (manifest.sealed, manifest.seal) == (0, "")
    assert empty.restore(tmp_path / "b.tar.gz", secret="another") == ([], [])


def test_an_older_schema_comes_back_and_the_next_start_migrates_it(tmp_path: Path, empty: Files) -> None:
    old = Files(tmp_path / "old")
    old.directory.mkdir()
    engine = make_engine(parse_url(Secret(old.url)), connections=1)
    with begin(engine, None, writes=True) as connection:
        upgrade(connection, "0009_log_bodies")
    engine.dispose()
    manifest = old.back_up(tmp_path / "b.tar.gz")
    assert (manifest.schema, manifest.count_of("database/")) == ("0009_log_bodies", 1)
    empty.restore(tmp_path / "b.tar.gz")
    assert revision_of(empty) == "0009_log_bodies"
    engine = make_engine(parse_url(Secret(empty.url)), connections=1)
    migrate(engine)
    engine.dispose()
    assert revision_of(empty) == HEAD


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        (
            "it has the schema 0999_later of version 7.0.0, which is newer than",
            {"schema": "0999_later", "works_with": "0999_later", "version": "7.0.0"},
        ),
        ("it is of PostgreSQL, and the configuration names SQLite", {"database": "postgresql"}),
        ("its database has another schema than it says", {"schema": "0011_contents", "works_with": "0010_partitions"}),
    ],
)
def test_a_backup_that_does_not_fit_is_refused(
    said: str, changes: dict[str, object], tmp_path: Path, empty: Files
) -> None:
    main = fill(tmp_path / "gateway").main.read_bytes()
    files = {MAIN: main} if "database" not in changes else {"database/postgresql.dump": b"x"}
    assert said in refused(empty, make_archive(tmp_path / "b.tar.gz", files, **changes))


def test_a_database_that_is_damaged_in_a_backup_that_is_in_order_is_refused(tmp_path: Path, empty: Files) -> None:
    main = bytearray(fill(tmp_path / "gateway").main.read_bytes())
    main[4096 : 4096 + 200] = b"\xff" * 200
    said = refused(empty, make_archive(tmp_path / "b.tar.gz", {MAIN: bytes(main)}))
    assert said.startswith("database/main.sqlite3 in it is damaged: ")


def test_a_restore_that_does_not_fit_on_the_disk_is_refused_before_it_is_unpacked(
    backup: Path, empty: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5_000))
    assert f"{empty.directory} has 5,000 bytes free, and the backup needs" in refused(empty, backup)


def start(files: Files) -> str:
    """Open a database as a gateway's start does, and return which state it finds: empty, old or new."""
    # A start in an empty place makes a new file.
    if files.main.exists() or Path(f"{files.main}.restoring").exists():
        make_engine(parse_url(Secret(files.url))).dispose()
    assert not Path(f"{files.main}.restoring").exists()
    found = {name for name in files.contents() if ".before-restore-" not in name and ".restoring" not in name}
    if not found:
        return "empty"
    assert found == {
        *("keys.sqlite", "keys.sqlite-usage/2026-05.db", "keys.sqlite-usage/2026-06.db"),
        "keys.sqlite.spool/f00d-000002.spool",
    }
    requests = requests_of(files)
    waiting = read_lines(files.spool / "f00d-000002.spool", 0, 1 << 20, 100).rows
    return {(6, 2): "old", (20, 7): "new"}[requests, len(waiting)]


def test_a_restore_that_is_killed_at_any_moment_leaves_the_old_state_or_the_new(backup: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    script = "tests.storage.backup.killed_restores"
    subprocess.run([sys.executable, "-m", script, str(backup), str(killed)], cwd=REPOSITORY, check=True)
    for kind, before in (("empty", "empty"), ("full", "old")):
        count = len(list(killed.glob(f"{kind}-*")))
        assert count > 15
        states = []
        for number in range(count):
            files = Files(killed / f"{kind}-{number}")
            states.append(start(files))
            if states[-1] == "new" and kind == "full":
                assert len([name for name in files.contents() if ".before-restore-" in name]) == 4
            # Another restore takes away what this one left.
            files.restore(backup, force=True)
            assert list(files.directory.rglob(".restoring*")) == []
            assert start(files) == "new"
        first = states.index("new")
        assert states == [before] * first + ["new"] * (count - first)
        assert 0 < first < count - 1
