"""``--import-litellm`` on a PostgreSQL with LiteLLM's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest

from tests.litellm_import.rows import texts, token_of
from tests.services.litellm_database import NEW, OLD, PASSWORD, fill
from tests.services.private_postgresql import PrivatePostgresql
from twisted_vllm.app.tap import Options
from twisted_vllm.config.load import load
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.litellm_import.command import Imported, import_litellm
from twisted_vllm.litellm_import.notes import Outcome
from twisted_vllm.money import PICODOLLARS
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.store import change_in
from twisted_vllm.storage.transacting import transact
from twisted_vllm.storage.transaction import Transaction

VERSIONS = pytest.mark.parametrize("tables", [OLD, NEW], ids=["LiteLLM 1.80", "LiteLLM 1.108"])


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def target(request: pytest.FixtureRequest, postgresql: PrivatePostgresql, tmp_path: Path) -> Settings:
    """The settings of a gateway with an empty database."""
    url = f"sqlite:///{tmp_path / 'keys.sqlite'}" if request.param == "SQLite" else postgresql.make_database()
    return settings_for(url)


def settings_for(url: str) -> Settings:
    return load(
        file=None,
        environ={"LITELLM_MASTER_KEY": "sk-master", "HOSTED_VLLM_API_BASE": "http://127.0.0.1:1", "DATABASE_URL": url},
    )


def in_transaction(settings: Settings, work: Callable[[Transaction], Any]) -> Any:
    engine = make_engine(parse_url(settings.database_url), connections=1)
    try:
        found: Any = transact(
            engine,
            settings.database_url,
            lambda connection: change_in(connection, work),
            Deadline(60.0),
            writes=True,
        )
    finally:
        engine.dispose()
    return found[0]


def counts_of(imported: Imported) -> dict[str, tuple[int, int, int, int]]:
    return {kind: attrs.astuple(count) for kind, count in imported.counts.items() if any(attrs.astuple(count))}


NEWLY = {
    "budgets": (1, 0, 0, 0),
    "organizations": (1, 0, 0, 0),
    "users": (1, 0, 0, 0),
    "teams": (1, 0, 0, 0),
    "members of teams": (1, 0, 0, 0),
    "members of organizations": (1, 0, 0, 0),
    "end users": (2, 0, 0, 0),
    "keys": (2, 0, 0, 0),
    "sums of spend": (4, 0, 0, 0),
}


@VERSIONS
def test_everything_is_copied_and_a_second_time_nothing_changes(
    tables: Mapping[str, str], target: Settings, postgresql_url: str
) -> None:
    fill(postgresql_url, tables)
    first = import_litellm(target, Secret(postgresql_url), only_check=False)
    assert counts_of(first) == NEWLY
    assert texts(first.notes, Outcome.BLOCKED) == [f'key "guarded" ({token_of("sk-with-a-guardrail")[:8]}): guardrails']

    def look(transaction: Transaction) -> None:
        key = transaction.keys.get(token_of("sk-of-the-blue-team"))
        assert key is not None
        assert (key.key_alias, key.user_id, key.team_id, key.models, key.blocked) == (
            "blue key",
            "ada",
            "blue",
            (),
            False,
        )
        guarded = transaction.keys.get(token_of("sk-with-a-guardrail"))
        assert guarded is not None
        assert guarded.blocked
        team = transaction.teams.get("blue")
        assert team is not None
        assert (team.team_alias, team.organization_id, team.models, team.allowance.rpm) == (
            "Blue",
            "org",
            ("qwen",),
            60,
        )
        user = transaction.users.get("ada")
        assert user is not None
        assert user.user_email == "ada@example.org"
        [member] = transaction.members.of_teams(["blue"])["blue"]
        assert (member.user_id, member.role, member.budget_id) == ("ada", "admin", "small")
        assert transaction.organizations.get("org") is not None
        spent = transaction.spend.of("key", [key.key_id])[key.key_id]
        assert (spent.spend, spent.total_spend) == (PICODOLLARS // 2, PICODOLLARS // 2)

    in_transaction(target, look)
    second = import_litellm(target, Secret(postgresql_url), only_check=False)
    assert counts_of(second) == {kind: (0, 0, new, 0) for kind, (new, *_) in NEWLY.items()}


def test_a_second_import_updates_what_nobody_changed_here(target: Settings, postgresql_url: str) -> None:
    fill(postgresql_url, NEW)
    import_litellm(target, Secret(postgresql_url), only_check=False)

    def change_here(transaction: Transaction) -> None:
        guarded = transaction.keys.get(token_of("sk-with-a-guardrail"))
        assert guarded is not None
        transaction.keys.replace(guarded.token, attrs.evolve(guarded, blocked=False, updated_by="master"))
        [spent] = transaction.spend.of("user", ["ada"]).values()
        transaction.spend.put_all([attrs.evolve(spent, spend=7 * PICODOLLARS, total_spend=7 * PICODOLLARS)])

    in_transaction(target, change_here)
    with psycopg.connect(postgresql_url) as connection:
        connection.execute('UPDATE "LiteLLM_VerificationToken" SET rpm_limit = 9, spend = 3')
        connection.execute('UPDATE "LiteLLM_UserTable" SET spend = 2')
    again = import_litellm(target, Secret(postgresql_url), only_check=False)
    assert again.counts["keys"] == attrs.evolve(again.counts["keys"], new=0, updated=1, unchanged=0, kept=1)
    assert [note.subject for note in again.notes.of(Outcome.SKIPPED)] == [
        f'key "guarded" ({token_of("sk-with-a-guardrail")[:8]})'
    ]

    def look(transaction: Transaction) -> None:
        guarded = transaction.keys.get(token_of("sk-with-a-guardrail"))
        blue = transaction.keys.get(token_of("sk-of-the-blue-team"))
        assert guarded is not None
        assert blue is not None
        assert (guarded.blocked, guarded.allowance.rpm, blue.allowance.rpm) == (False, None, 9)
        # what was spent here is not forgiven, and what was spent there counts
        assert transaction.spend.of("user", ["ada"])["ada"].spend == 7 * PICODOLLARS
        assert transaction.spend.of("key", [blue.key_id])[blue.key_id].spend == 3 * PICODOLLARS

    in_transaction(target, look)


def test_a_check_changes_nothing_and_makes_no_file(tmp_path: Path, postgresql_url: str) -> None:
    fill(postgresql_url, NEW)
    settings = settings_for(f"sqlite:///{tmp_path / 'keys.sqlite'}")
    found = import_litellm(settings, Secret(postgresql_url), only_check=True)
    assert counts_of(found) == NEWLY
    assert list(tmp_path.iterdir()) == []
    import_litellm(settings, Secret(postgresql_url), only_check=False)
    with psycopg.connect(postgresql_url) as connection:
        connection.execute("DELETE FROM \"LiteLLM_VerificationToken\" WHERE key_alias = 'guarded'")
        connection.execute('UPDATE "LiteLLM_VerificationToken" SET rpm_limit = 1')
    found = import_litellm(settings, Secret(postgresql_url), only_check=True)
    assert found.counts["keys"].updated == 1
    found = import_litellm(settings, Secret(postgresql_url), only_check=True)
    assert found.counts["keys"].updated == 1


def test_litellm_s_own_database_may_be_ours_too(postgresql_url: str) -> None:
    fill(postgresql_url, NEW)
    assert counts_of(import_litellm(settings_for(postgresql_url), Secret(postgresql_url), only_check=False)) == NEWLY


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ('DROP TABLE "LiteLLM_VerificationToken"', "This is not LiteLLM's database"),
        ('ALTER TABLE "LiteLLM_TeamTable" DROP COLUMN members_with_roles', "of a version before 1.80"),
    ],
)
def test_another_database_is_refused(statement: str, reason: str, tmp_path: Path, postgresql_url: str) -> None:
    fill(postgresql_url, OLD)
    with psycopg.connect(postgresql_url) as connection:
        connection.execute(statement.encode())
    with pytest.raises(StoreError, match=reason):
        import_litellm(settings_for(f"sqlite:///{tmp_path / 'k'}"), Secret(postgresql_url), only_check=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["import", "check"])
def test_the_command_says_what_it_did_and_shows_no_secret(
    options: tuple[str, ...],
    tmp_path: Path,
    postgresql: PrivatePostgresql,
    postgresql_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(postgresql_url, NEW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-master")
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://127.0.0.1:1")
    monkeypatch.setenv("LITELLM_DATABASE_URL", postgresql_url)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--import-litellm", "os.environ/LITELLM_DATABASE_URL", *options])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"keys:                     2 {'to make' if options else 'made'}, 0 " in shown
    assert 'key "guarded"' in shown
    for secret in (postgresql.password, PASSWORD, token_of("sk-with-a-guardrail")):
        assert secret not in shown
    assert bool(list(tmp_path.iterdir())) is not bool(options)


def test_a_database_that_does_not_answer_ends_the_command_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://127.0.0.1:1")
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--import-litellm", "postgresql://ada:a-secret@127.0.0.1:1/litellm"])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert shown.startswith("Nothing was imported: LiteLLM's database cannot be read: ")
    assert "a-secret" not in shown
    assert list(tmp_path.iterdir()) == []
