"""``backup`` and ``restore`` as somebody types them: what they print, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.backups import QUIET, command, done, refused, run, settle
from tests.end_to_end.process_harness import MeasuredGateway
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, environment, wait_until
from tests.storage.backup.making import fill
from twisted_vllm.storage.schema import HEAD

MODEL = {
    "model_name": "gpt-9",
    "litellm_params": {"model": "hosted_vllm/gpt-9", "api_base": "http://127.0.0.1:9", "api_key": "of-the-server"},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a gateway that has ended, with a key, and a model whose server has an encrypted key."""
    directory = tmp_path_factory.mktemp("gateway")
    with MeasuredGateway(directory, 9) as running:
        for path, body in (("/key/generate", {"key": "sk-of-the-backup"}), ("/model/new", MODEL)):
            status, text = ask(running.port, path, MASTER_KEY, "POST", json.dumps(body))
            assert status == 200, text
        assert running.terminate() == 0
    return directory


@pytest.fixture(scope="module")
def backup(gateway: Path) -> Path:
    done(gateway, "backup", "--config", "gateway.yaml", "--output", "b.tar.gz")
    return gateway / "b.tar.gz"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "gateway.yaml").write_text(f"passthrough: {{{QUIET}}}\n")
    return tmp_path


def restore(place: Path, *arguments: str | Path) -> tuple[str | Path, ...]:
    return ("restore", *arguments, "--config", "gateway.yaml")


def test_a_backup_says_what_is_in_it_what_is_not_and_which_key_a_restore_needs(gateway: Path, tmp_path: Path) -> None:
    said = done(gateway, "backup", "--config", "gateway.yaml", "--output", tmp_path / "b.tar.gz")
    assert said.startswith(f"{tmp_path}/b.tar.gz: ")
    assert "read back and whole." in said
    assert f"schema {HEAD}" in said
    assert "Not in it: the configuration, and the environment with the master key and the salt key." in said
    assert "1 keys of servers in it are encrypted: a restore needs the master key of today." in said
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    checked = done(tmp_path, "backup", "--check", "b.tar.gz")
    assert checked.startswith("b.tar.gz is whole.\n")
    assert MASTER_KEY not in said + checked


def test_a_restored_gateway_serves_its_keys(gateway: Path, backup: Path, place: Path) -> None:
    said = done(place, *restore(place, backup))
    assert said.startswith("Restored into SQLite")
    assert "Start the gateway" in said
    with MeasuredGateway(place, 9) as running:
        assert ask(running.port, "/key/info", "sk-of-the-backup")[0] == 200
        assert ask(running.port, "/key/info", "sk-of-nobody")[0] == 401
        assert "is in use by the process" in refused(place, *restore(place, backup, "--force"))


def test_another_master_key_is_refused_until_it_is_forced(backup: Path, place: Path) -> None:
    ended = run(place, *restore(place, backup), LITELLM_SALT_KEY="another-salt")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"vllm-passthrough: {backup}: it has 1 keys of servers that are encrypted")
    assert ended.stderr.count("\n") == 1
    forced = run(place, *restore(place, backup, "--force"), LITELLM_SALT_KEY="another-salt")
    assert forced.returncode == 0
    assert forced.stderr.startswith("warning: the backup has 1 keys of servers that are encrypted with another salt")


def test_what_is_there_goes_aside_and_is_named(backup: Path, place: Path) -> None:
    done(place, *restore(place, backup))
    settle(place)
    assert "is there already" in refused(place, *restore(place, backup))
    said = done(place, *restore(place, backup, "--force"))
    [aside] = [line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("moved aside:")]
    assert Path(aside).exists()
    assert Path(aside).name.startswith("twisted_vllm.sqlite3.before-restore-")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backup", "--check", "nothing.tar.gz"], "vllm-passthrough: nothing.tar.gz: No such file or directory"),
        (["backup", "--check", "gateway.yaml"], "gateway.yaml: it is not a backup: it is compressed with neither"),
        (["restore", "gateway.yaml"], "gateway.yaml: it is not a backup: it is compressed with neither"),
        (["restore", "."], ".: Is a directory"),
        (["backup", "--output", "b.tar.gz"], "There is no database"),
        (["backup", "--output", "b.tar.xz"], "b.tar.xz ends neither in .tar.zst nor in .tar.gz"),
        (["backup", "--output", "nowhere/b.tar.gz"], "The directory nowhere does not exist"),
        (["backup", "--output", "gateway.yaml", "--config", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_a_mistake_gets_one_line(arguments: list[str], said: str, place: Path) -> None:
    assert said in refused(place, *arguments)
    assert os.listdir(place) == ["gateway.yaml"]


@pytest.mark.parametrize("arguments", [["backup"], ["backup", "--output", "a.tar.gz", "--check", "a.tar.gz"]])
def test_a_backup_is_either_written_or_checked(arguments: list[str], place: Path) -> None:
    ended = run(place, *arguments)
    assert ended.returncode == 2
    assert "name a file with --output, or one that is there with --check" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_backup_in_one_line_and_leaves_nothing(number: int, place: Path) -> None:
    files = fill(place / "gateway")
    with closing(sqlite3.connect(files.main)) as other:
        # nothing that compresses: it takes seconds
        other.execute("CREATE TABLE ballast (a)")
        other.executemany("INSERT INTO ballast VALUES (randomblob(?))", [(1 << 20,)] * 60)
        other.commit()
    with subprocess.Popen(
        command("backup", "--output", "b.tar.gz"),
        cwd=place,
        env=environment(DATABASE_URL=files.url, HOSTED_VLLM_API_BASE="http://127.0.0.1:9"),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: list(place.glob(".b.tar.gz.*/b.tar.gz")))
        process.send_signal(number)
        _, told = process.communicate()
    assert told == "vllm-passthrough: interrupted; nothing was changed, and nothing of it is kept\n"
    assert process.returncode == 1
    assert sorted(os.listdir(place)) == ["gateway", "gateway.yaml"]
