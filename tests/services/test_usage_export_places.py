"""The export of real gateways, to a directory and to an S3 server."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="PyArrow is not installed")
pytest.importorskip("duckdb", reason="DuckDB is not installed")
pytest.importorskip("moto", reason="moto is not installed")

from tests.end_to_end.many_callers import RESPONSE
from tests.end_to_end.process_harness import Connection, MeasuredGateway, served
from tests.end_to_end.test_gateway_metrics import DOCUMENTED
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, serving, wait_until
from tests.services.test_sink_receivers import KEYS, s3_server
from tests.usage_export.export_contract import DAY, Exporting, after
from tests.usage_export.reading import ask_duckdb, files_of
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.usage.days import date_of
from twisted_vllm.usage_export import process
from twisted_vllm.usage_export.job import DONE, FAILED, BucketAccess, Report

#: where the gateways of these tests have their database
DATABASE = "ledger.sqlite3"
PREFIX = "vllm_passthrough_usage_export_"


def exporting_in(directory: Path) -> Exporting:
    url = Secret(f"sqlite:///{directory}/{DATABASE}")
    engine = make_engine(parse_url(url))
    migrate(engine)
    return Exporting(url, engine, directory / "exported", UsageDatabase(url, lambda *_: 0))


def ledger(**export: Any) -> str:
    """Members of the mapping ``passthrough``."""
    return f"ledger: {json.dumps({'usage_export': {'format': 'parquet', **export}})}"


def exports(port: int) -> Any:
    status, body = ask(port, "/usage/exports", MASTER_KEY)
    assert status == 200
    return json.loads(body)


def told_by(port: int) -> dict[str, float]:
    """The export's metrics."""
    found = re.findall(rf"^{PREFIX}(\w+) (\S+)$", ask(port, "/metrics")[1], re.MULTILINE)
    return {name: float(value) for name, value in found}


def last_closed() -> int:
    """The last day that is due two hours after midnight."""
    return int((time.time() - 7_200) // 86_400) - 1


def test_a_gateway_exports_the_days_that_are_closed_and_does_one_again_when_asked(tmp_path: Path) -> None:
    stored = exporting_in(tmp_path)
    last = last_closed()
    stored.store(last - 1, 3_000, cost=1)
    stored.store(last, 2_000, cost=10**12)
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/{DATABASE}"}
    settings = ledger(directory="exported", rows_per_file=1_000)
    with (
        served(answer) as server,
        MeasuredGateway(tmp_path, server.port, passthrough=settings, **database) as gateway,
    ):
        wait_until(lambda: exports(gateway.port)["exported_until"] == str(date_of(last)))
        found = exports(gateway.port)
        assert (found["next_day"], found["last_error"]) == (str(date_of(last + 1)), None)
        assert [(day["rows"], day["files"], day["times_written"]) for day in found["days"]] == [
            (2_000, 2, 1),
            (3_000, 3, 1),
        ]
        sums = ask_duckdb(stored.directory, "date, count(*), sum(cost)", "GROUP BY date ORDER BY date")
        assert sums == [(date_of(day), count, stored.cost(day)) for day, count in ((last - 1, 3_000), (last, 2_000))]
        # a spool of another gateway came back
        stored.store(last - 1, 5, first=10_000)
        body = json.dumps({"day": str(date_of(last))})
        assert ask(gateway.port, "/usage/exports", MASTER_KEY, "POST", body)[0] == 200
        wait_until(lambda: [day["times_written"] for day in exports(gateway.port)["days"]] == [2, 2])
        assert ask_duckdb(stored.directory, "count(*), count(DISTINCT (time, id))") == [(5_005, 5_005)]
        # the process notes what it did before the gateway learns of it
        wait_until(lambda: told_by(gateway.port)["days_total"] == 4)
        told = told_by(gateway.port)
        assert {f"{PREFIX}{name}" for name in told} == {name for name in DOCUMENTED if name.startswith(PREFIX)}
        assert told["last_day_timestamp_seconds"] == (last + 1) * 86_400
        assert told["rows_total"] == 3_000 + 2_000 + 3_005 + 2_000
        assert (told["overdue_seconds"], told["failures_total"]) == (0, 0)
        # what the export loads is never in the gateway
        assert not any("arrow" in line for line in Path(f"/proc/{gateway.pid}/maps").read_text().splitlines())


def test_two_gateways_on_one_database_export_each_day_once(tmp_path: Path) -> None:
    stored = exporting_in(tmp_path)
    last = last_closed()
    for day in range(last - 3, last + 1):
        stored.store(day, 500)
    shared = ledger(directory=str(tmp_path / "exported"))
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/{DATABASE}"}
    with served(answer) as server:
        gateways = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            gateways.append(MeasuredGateway(tmp_path / name, server.port, passthrough=shared, **database))
        with serving(*gateways):
            wait_until(lambda: exports(gateways[0].port)["exported_until"] == str(date_of(last)))
            found = exports(gateways[1].port)["days"]
    assert [(day["rows"], day["times_written"]) for day in found] == [(500, 1)] * 4
    assert ask_duckdb(tmp_path / "exported", "count(*)") == [(2_000,)]
    assert len(files_of(tmp_path / "exported")) == 4


def answer(connection: Connection) -> None:
    """Answer what has no body, such as checks of health."""
    while connection.read_head():
        connection.send(RESPONSE)


def process_of(gateway: MeasuredGateway) -> int | None:
    """The process that a gateway exports with, if one runs."""
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text().split()
    return int(children[0]) if children else None


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("killed", ["gateway", "process"])
def test_who_is_killed_while_it_exports_leaves_whole_days_alone(tmp_path: Path, killed: str) -> None:
    stored = exporting_in(tmp_path)
    last = last_closed()
    stored.store(last - 1, 100)
    stored.store(last, 30_000)
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/{DATABASE}"}
    settings = ledger(directory="exported")
    staged = stored.directory / ".usage-staging"

    def is_writing() -> bool:
        return any(path.name.startswith(str(date_of(last))) for path in staged.glob("*"))

    with served(answer) as server:
        first = MeasuredGateway(tmp_path, server.port, passthrough=settings, **database)
        with first:
            wait_until(is_writing)
            exporter = process_of(first)
            assert exporter is not None
            assert os.getpriority(os.PRIO_PROCESS, exporter) == 19
            if killed == "gateway":
                first.signal(signal.SIGKILL)
                first.wait()
                # it ends with its gateway
                wait_until(lambda: not is_alive(exporter))
            else:
                os.kill(exporter, signal.SIGKILL)
                wait_until(lambda: exports(first.port)["last_error"] == "its process ended by signal 9")
                assert exports(first.port)["exported_until"] == str(date_of(last - 1))
            assert files_of(stored.directory) == [f"usage/date={date_of(last - 1)}/usage-0000.parquet"]
        # ten minutes later
        stored.let_claims_lapse()
        second = MeasuredGateway(tmp_path, server.port, passthrough=settings, **database)
        with second:
            if killed == "process":
                body = json.dumps({"day": str(date_of(last))})
                assert ask(second.port, "/usage/exports", MASTER_KEY, "POST", body)[0] == 200
            wait_until(lambda: exports(second.port)["exported_until"] == str(date_of(last)))
    assert ask_duckdb(stored.directory, "count(*), count(DISTINCT (time, id))") == [(30_100, 30_100)]
    assert list(staged.iterdir()) == []


def test_a_gateway_that_stops_while_it_exports_gives_the_day_back(tmp_path: Path) -> None:
    stored = exporting_in(tmp_path)
    last = last_closed()
    stored.store(last, 30_000)
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/{DATABASE}"}
    with served(answer) as server:
        gateway = MeasuredGateway(tmp_path, server.port, passthrough=ledger(directory="exported"), **database)
        with gateway:
            wait_until(lambda: list((stored.directory / ".usage-staging").glob("*")))
            exporter = process_of(gateway)
            assert gateway.terminate() == 0
    assert exporter is not None and not is_alive(exporter)
    assert stored.row(last).claimed_by is None
    assert files_of(stored.directory) == []


def test_a_gateway_exports_to_s3_and_tells_no_secret(tmp_path: Path) -> None:
    stored = exporting_in(tmp_path)
    last = last_closed()
    stored.store(last, 1_500, cost=3)
    with served(answer) as server, s3_server() as (port, client):
        client.create_bucket(Bucket="usage")
        bucket = {
            "bucket": "usage",
            "prefix": "eu/",
            "endpoint_url": f"http://127.0.0.1:{port}",
            "region": "us-east-1",
            "access_key_id": "an-access-key-id",
            "secret_access_key": "a-secret-key-of-the-file",
        }
        database = {"DATABASE_URL": f"sqlite:///{tmp_path}/{DATABASE}"}
        settings = ledger(directory=str(tmp_path / "staging"), s3=bucket)
        with MeasuredGateway(tmp_path, server.port, passthrough=settings, **database) as gateway:
            wait_until(lambda: exports(gateway.port)["exported_until"] == str(date_of(last)))
            assert exports(gateway.port)["target"] == "s3://usage/eu/"
            (key,) = (each["Key"] for each in client.list_objects_v2(Bucket="usage")["Contents"])
            assert key == f"eu/usage/date={date_of(last)}/usage-0000.parquet"
            made = tmp_path / "got/usage/date=x"
            made.mkdir(parents=True)
            client.download_file("usage", key, str(made / "a.parquet"))
            assert ask_duckdb(tmp_path / "got", "count(*), sum(cost)") == [(1_500, stored.cost(last))]
    assert files_of(tmp_path / "staging") == []
    log = (tmp_path / "gateway.log").read_text()
    assert "a-secret-key-of-the-file" not in log
    assert "Exported the usage of" in log


@pytest.fixture
def exporting(tmp_path: Path) -> Exporting:
    return exporting_in(tmp_path)


def access(port: int, bucket: str) -> BucketAccess:
    return BucketAccess(
        bucket=bucket,
        endpoint_url=f"http://127.0.0.1:{port}",
        region="us-east-1",
        access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


def keys_in(client: Any, bucket: str) -> list[str]:
    return [each["Key"].rpartition("/")[2] for each in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_a_day_that_has_fewer_files_leaves_none_of_the_former_ones_in_the_bucket(exporting: Exporting) -> None:
    exporting.store(DAY, 3_500)
    with s3_server() as (port, client):
        client.create_bucket(Bucket="fewer")
        other = f"usage/date={date_of(DAY)}/README.txt"
        client.put_object(Bucket="fewer", Key=other, Body=b"of somebody else")
        exporting.export_all(after(DAY), bucket=access(port, "fewer"), rows_per_file=1_000)
        assert keys_in(client, "fewer") == ["README.txt", *(f"usage-000{number}.parquet" for number in range(4))]
        exporting.store(DAY, 1, first=9_000)
        ((_, report),) = exporting.export_all(after(DAY), bucket=access(port, "fewer"))
        assert report == Report(DONE, 1, 3_501, report.bytes)
        assert keys_in(client, "fewer") == ["README.txt", "usage-0000.parquet"]
    assert files_of(exporting.directory) == []


def test_a_bucket_that_is_missing_or_away_is_told_in_words(exporting: Exporting) -> None:
    exporting.store(DAY, 1)
    work = exporting.take(after(DAY))
    assert work is not None
    with s3_server() as (port, _):
        report = process.export(exporting.job(work, bucket=access(port, "missing")))
        assert report == Report(FAILED, error="the bucket missing: it answers 404 NoSuchBucket")
    report = process.export(exporting.job(work, bucket=access(port, "missing")))
    assert report == Report(FAILED, error="the bucket missing: it cannot be reached")
    assert list((exporting.directory / ".usage-staging").iterdir()) == []
