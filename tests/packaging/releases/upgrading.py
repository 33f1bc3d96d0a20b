"""Starts the present gateway on what a version left, and compares what it says with what has to be true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.free_ports import free_port
from tests.cli.backups import run
from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import served
from tests.end_to_end.twistd_harness import Foreground, ask, wait_until
from tests.packaging.releases.fixture import CONFIGURATION, MASTER_KEY, SALT_KEY, Expected
from tests.whole_ledger import check_ledger
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import HEAD

#: the time of all requests of the fixtures
REPORT = "/usage/report?interval=month&start=2026-09-01&end=2026-11-30"


class Upgraded:
    """The present gateway on the files of another version."""

    def __init__(self, gateway: Foreground) -> None:
        self._port = gateway.port

    def get(self, path: str) -> dict[str, object]:
        """Return what the admin API answers."""
        status, text = ask(self._port, path, MASTER_KEY)
        assert status == 200, text
        found: dict[str, object] = json.loads(text)
        return found

    def months(self) -> dict[str, tuple[int, int, int]]:
        """Return requests, tokens and microdollars of each month."""
        found = self.get(REPORT)["results"]
        assert isinstance(found, list)
        return {
            row["start"][:7]: (
                row["requests"],
                row["prompt_tokens"] + row["completion_tokens"],
                round(row["spend"] * 1e6),
            )
            for row in found
        }

    def spend(self, path: str, inside: str) -> int:
        """Return the microdollars that a record says."""
        record = self.get(path)[inside]
        assert isinstance(record, dict)
        return round(float(record["spend"]) * 1e6)

    def request(self, key: str, model: str) -> tuple[int, str]:
        """Send a request; return the status, and the code of the error."""
        # as long as those of the fixtures: what it might cost is reserved
        body = {"model": model, "messages": [], "max_tokens": 4, "user": "customer-poor"}
        status, text = ask(self._port, "/v1/chat/completions", key, "POST", json.dumps(body))
        return status, json.loads(text).get("error", {}).get("code", "")


@contextmanager
def upgraded(directory: Path, variables: dict[str, str]) -> Iterator[Upgraded]:
    """Run the present gateway in a directory with a version's files; it ends in order."""
    arguments = (f"--config={CONFIGURATION}",)
    with (
        served(serve) as server,
        Foreground(
            directory,
            free_port(),
            *arguments,
            **{**variables, "FIXTURE_SERVER": f"http://127.0.0.1:{server.port}"},
        ) as gateway,
    ):
        yield Upgraded(gateway)
        assert gateway.terminate() == 0


def check_upgrade(directory: Path, expected: Expected, url: str) -> None:
    """Check that the present gateway goes on with what is in a directory, and in a database.

    Args:
        directory: with the version's files.
        expected: what has to be true.
        url: of the database.
    """
    variables = {"LITELLM_MASTER_KEY": MASTER_KEY, "VLLM_PASSTHROUGH_SALT_KEY": SALT_KEY, "DATABASE_URL": url}
    checked = run(directory, "check", f"--config={CONFIGURATION}", FIXTURE_SERVER="http://127.0.0.1:9", **variables)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert {line for line in checked.stdout.splitlines() if "warning" in line} <= set(expected.warnings)
    months = {
        month: (count, count * expected.tokens, count * expected.microdollars)
        for month, count in expected.months.items()
    }
    sent = 0
    with upgraded(directory, variables) as gateway:
        assert revision(url) == HEAD
        # the rows that wait in the spool
        wait_until(lambda: gateway.months() == months)
        for key in expected.keys:
            assert gateway.spend(f"/key/info?key={key.key}", "info") == key.spend, key.alias
        for team, spend in expected.teams.items():
            assert gateway.spend(f"/team/info?team_id={team}", "team_info") == spend
        assert number(url, "SELECT count(*) FROM vllm_passthrough_audit") == expected.audit
        for key in expected.keys:
            found = [gateway.request(key.key, key.model if at else "small") for at, _ in enumerate(key.answers)]
            assert tuple(status for status, _ in found) == key.answers, key.alias
            assert found[-1][1] == key.error, key.alias
            sent += len(found)
        # The key of its server, which is not there, could be decrypted.
        assert gateway.request(MASTER_KEY, "large") == (502, "upstream_unreachable")
    lines = [json.loads(line) for line in (directory / "gateway.log").read_text().splitlines()]
    # no server answers for the model of the last request
    assert [line for line in lines if line["level"] in ("error", "critical") and "127.0.0.1:9" not in str(line)] == []
    rows = check_ledger(url)
    assert sum(row.requests for row in rows if row.time <= (expected.ended + 1) * 1_000_000) == expected.requests
    assert len({row.id for row in rows}) == len(rows)
    assert not list(directory.glob("*.spool/*.spool"))


def revision(url: str) -> object:
    """Return the revision of a database's schema."""
    return value(url, "SELECT version_num FROM vllm_passthrough_schema")


def number(url: str, statement: str) -> int:
    """Return the number that a statement finds."""
    return int(str(value(url, statement)))


def value(url: str, statement: str) -> object:
    """Return what a statement finds."""
    engine = make_engine(parse_url(Secret(url)), connections=1)
    try:
        with engine.connect() as connection:
            return connection.exec_driver_sql(statement).scalar()
    finally:
        engine.dispose()
