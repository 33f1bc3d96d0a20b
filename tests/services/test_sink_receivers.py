"""Sinks and programs that others wrote: rsyslog, and an S3 server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import MeasuredGateway, served
from tests.end_to_end.test_ledger_kill import BODY
from tests.end_to_end.test_sinks import metric, named, times_of
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until
from tests.services.private_rsyslog import PrivateRsyslog, find_rsyslog

pytest.importorskip("moto", reason="moto is not installed")

KEYS = {
    "AWS_ACCESS_KEY_ID": "an-access-key",
    "AWS_SECRET_ACCESS_KEY": "a-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture
def rsyslog() -> Iterator[PrivateRsyslog]:
    binary = find_rsyslog()
    if binary is None:
        pytest.skip("rsyslog (rsyslogd) is not installed")
    server = PrivateRsyslog(binary)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def s3_client(port: int) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def s3_server() -> Iterator[tuple[int, Any]]:
    """An S3 server of moto's, and a client of it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    client = s3_client(port)
    try:
        yield port, client
    finally:
        client.close()
        server.stop()


def objects(client: Any, bucket: str) -> dict[str, list[dict[str, Any]]]:
    """Return the JSON lines of each object of a bucket."""
    found = {}
    for each in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        got = client.get_object(Bucket=bucket, Key=each["Key"])
        assert got["ContentEncoding"] == "gzip"
        found[each["Key"]] = [json.loads(line) for line in gzip.decompress(got["Body"].read()).splitlines()]
    return found


def test_rsyslog_receives_messages_of_rfc_5424_by_udp_tcp_and_its_socket(
    tmp_path: Path, rsyslog: PrivateRsyslog
) -> None:
    queue = {"linger": 0.02}
    addresses = {"udp": f"udp://127.0.0.1:{rsyslog.port}", "tcp": f"tcp://127.0.0.1:{rsyslog.port}"}
    addresses["unix"] = f"unix:{rsyslog.socket}"
    sinks = [
        {"name": name, "type": "syslog", "address": address, "facility": "local3", "app_name": f"gw-{name}"}
        | {"queue": queue}
        for name, address in addresses.items()
    ]
    with served(serve) as server, MeasuredGateway(tmp_path, server.port, passthrough=named(*sinks)) as gateway:
        times_of(gateway.port, 20)
        # as long as the others', which is what the server reads
        odd = '{"model":"\\u00e9\\n<b>"}'.ljust(len(BODY))
        assert ask(gateway.port, "/vllm/v1/chat/completions", MASTER_KEY, "POST", odd)[0] == 200
        wait_until(lambda: all(metric(gateway.port, "delivered_total", name) >= 21 for name in addresses))

        def requests_of(name: str) -> list[dict[str, Any]]:
            found = [line.split(" ", 6) for line in rsyslog.received if f" gw-{name} request " in line]
            for facility, severity, _, _, process, _, _ in found:
                assert (facility, severity, process) == ("local3", "info", str(gateway.pid))
            return [json.loads(each[6]) for each in found]

        for name in addresses:
            wait_until(lambda name=name: len(requests_of(name)) == 21)  # type: ignore[misc]  # a default binds the name
            told = requests_of(name)
            assert [each["status"] for each in told] == [200] * 21
            assert told[-1]["model"] == "\u00e9\n<b>"
        assert any(" gw-tcp log " in line and "Listening on" in line for line in rsyslog.received)


def test_rsyslog_that_was_away_gets_what_waited(tmp_path: Path, rsyslog: PrivateRsyslog) -> None:
    sink = {
        "name": "syslog",
        "type": "syslog",
        "address": f"tcp://127.0.0.1:{rsyslog.port}",
        "events": ["requests"],
        "queue": {"linger": 0.02, "max_backoff": 0.2},
    }
    with served(serve) as server, MeasuredGateway(tmp_path, server.port, passthrough=named(sink)) as gateway:
        times_of(gateway.port, 2)
        wait_until(lambda: len(rsyslog.received) == 2)
        rsyslog.stop()
        times_of(gateway.port, 3)
        wait_until(lambda: metric(gateway.port, "failures_total", "syslog") >= 1)
        rsyslog.start()
        wait_until(lambda: len(rsyslog.received) >= 5)
        assert metric(gateway.port, "dropped_total", "syslog") == 0
        log = tmp_path / "gateway.log"
        wait_until(lambda: "syslog takes what is delivered again" in log.read_text())
        assert "syslog does not take what is delivered" in log.read_text()


def test_an_s3_server_receives_objects_that_decode(tmp_path: Path) -> None:
    with served(serve) as server, s3_server() as (port, client):
        client.create_bucket(Bucket="gateway-logs")
        sink = {
            "name": "archive",
            "type": "s3",
            "bucket": "gateway-logs",
            "prefix": "eu/",
            "format": "event",
            "events": ["requests"],
            "endpoint_url": f"http://127.0.0.1:{port}",
            "path_style": True,
            "queue": {"linger": 0.05, "batch_items": 10},
        }
        with MeasuredGateway(tmp_path, server.port, passthrough=named(sink), **KEYS) as gateway:
            times_of(gateway.port, 45)
            wait_until(lambda: metric(gateway.port, "delivered_total", "archive") == 45)
            assert gateway.terminate() == 0
        found = objects(client, "gateway-logs")
        assert sum(map(len, found.values())) == 45
        assert all(len(lines) <= 10 for lines in found.values())
        ids = [line["request_id"] for lines in found.values() for line in lines]
        assert len(set(ids)) == 45
        for key in found:
            assert key.startswith("eu/20")
            assert key.endswith(".jsonl.gz")
        assert "a-secret-key" not in (tmp_path / "gateway.log").read_text()


def test_an_s3_server_without_the_bucket_or_away_loses_nothing(tmp_path: Path) -> None:
    with served(serve) as server, s3_server() as (port, client):
        params = {
            "s3_bucket_name": "later",
            "s3_endpoint_url": f"http://127.0.0.1:{port}",
            "s3_flush_interval": 0.05,
        }
        settings = f"litellm_settings: {json.dumps({'success_callback': ['s3_v2'], 's3_callback_params': params})}"
        gateway = MeasuredGateway(tmp_path, server.port, settings=settings, **KEYS)
        with gateway:
            times_of(gateway.port, 3)
            wait_until(lambda: metric(gateway.port, "failures_total", "s3_v2") >= 1)
            log = (tmp_path / "gateway.log").read_text()
            assert "s3_v2 does not take what is delivered: it answers 404 NoSuchBucket" in log
            s3_client(port).create_bucket(Bucket="later")
            wait_until(lambda: metric(gateway.port, "delivered_total", "s3_v2") == 3)
            (lines,) = objects(client, "later").values()
            assert [line["total_tokens"] for line in lines] == [7, 7, 7]
            assert gateway.terminate() == 0
