"""The alerting rules by themselves: ``promtool test rules`` lets each fire by what it is for, and be silent else."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml

from tests.services.hurried_rules import RULES, every_rule

REPOSITORY = Path(__file__).parents[2]
RUNBOOK = (REPOSITORY / "docs" / "alerts.md").read_text("utf-8")
PROMETHEUS = REPOSITORY / "config" / "prometheus" / "prometheus.yml"

BEGIN = "vllm_passthrough_"
GATEWAY = 'job="vllm-passthrough", instance="gw:4000"'
DAY = 86_400


@attrs.frozen
class Case:
    """What lets an alert fire.

    Attributes:
        alert: its name.
        series: metrics, without what all begin with, their labels, and their values in a bad time.
        well: the same series in a good time; empty for no series at all.
        minutes: when to look.
        says: texts that its summary and description have.
    """

    alert: str
    series: tuple[tuple[str, str, str], ...]
    well: tuple[tuple[str, str, str], ...] = ()
    minutes: int = 10
    says: tuple[str, ...] = ()


def out(reason: str) -> tuple[tuple[str, str, str], ...]:
    return (("upstream_out", f'server="gpu-1:8000", reason="{reason}"', "1x60"),)


def counter(name: str, labels: str = "") -> tuple[tuple[str, str, str], ...]:
    return ((name, labels, "0+1x60"),)


def gauge(name: str, value: float, labels: str = "") -> tuple[tuple[str, str, str], ...]:
    return ((name, labels, f"{value}x120"),)


def mean(name: str, labels: str, count: str, total: str) -> tuple[tuple[str, str, str], ...]:
    return ((f"{name}_count", labels, count), (f"{name}_sum", labels, total))


OF_GPU = 'server="gpu-1:8000", model="qwen"'
TTFT = "time_to_first_byte_seconds"
STREAM = f'{OF_GPU}, stream="true"'
FAILED = 'model="qwen", server="gpu-1:8000", outcome="upstream_failed", status="502"'
DONE = 'model="qwen", server="gpu-1:8000", outcome="completed", status="200"'
LISTENER = 'use="listener", listener="*:443"'
EXPIRY = "tls_certificate_expiry_timestamp_seconds"


def bucket(name: str, labels: str, le: str, values: str) -> tuple[str, str, str]:
    return (f"{name}_bucket", f'{labels}, le="{le}"', values)


CASES = [
    *(
        Case("ServerDead", out(reason), out("timeout"), says=("gpu-1:8000", reason))
        for reason in ("connection_refused", "connection_lost", "connection_failed", "name_not_found")
    ),
    Case("ServerFrozen", out("timeout"), out("status_500"), says=("gpu-1:8000", "frozen")),
    Case("ServerErrors", out("status_503"), out("timeout"), says=("gpu-1:8000", "status_503")),
    Case(
        "ServerErrors",
        (("upstream_failures_total", 'server="gpu-1:8000", reason="status_500"', "0+3x60"),),
        (("upstream_failures_total", 'server="gpu-1:8000", reason="status_500"', "0+0x20 1x40"),),
        says=("gpu-1:8000", "status_500"),
    ),
    Case("ServerSpeaksWrongly", out("tls_failed"), out("timeout"), says=("gpu-1:8000", "tls_failed")),
    Case(
        # a thousand failures between two scrapes, of a gateway that had none before
        "ServerErrors",
        (("upstream_failures_total", 'server="gpu-1:8000", reason="status_502"', "0x5 1000x20"),),
        (("upstream_failures_total", 'server="gpu-1:8000", reason="status_502"', "1000x60"),),
        minutes=8,
        says=("gpu-1:8000", "status_502"),
    ),
    Case(
        "ServerCutsAnswers",
        counter("upstream_failures_total", 'server="gpu-1:8000", reason="answer_cut"'),
        counter("upstream_failures_total", 'server="gpu-1:8000", reason="protocol_error"'),
        says=("gpu-1:8000 cuts its answers",),
    ),
    Case(
        "ServerSlow",
        # 0.1 s, and then 5 s
        mean(TTFT, STREAM, "0+60x200", "0+6x90 541+300x100"),
        mean(TTFT, STREAM, "0+60x200", "0+300x200"),
        minutes=102,
        says=("gpu-1:8000", "5s to the first event"),
    ),
    Case(
        "ServerTimesOut",
        counter("upstream_failures_total", 'server="gpu-1:8000", reason="slow"'),
        counter("upstream_failures_total", 'server="gpu-1:8000", reason="timeout"'),
        says=("gpu-1:8000", "time out"),
    ),
    Case(
        "ServerFlaps",
        (("upstream_healthy", 'server="gpu-1:8000"', "1 0 1 0 1 0 1 0 1 0 1 0 1 0"),),
        (("upstream_healthy", 'server="gpu-1:8000"', "1 1 1 0 0 0 0 0 1 1 1 1 1"),),
        says=("gpu-1:8000 comes and goes",),
    ),
    Case(
        "NoServer",
        (*gauge("upstream_healthy", 0, 'server="a"'), *gauge("upstream_healthy", 0, 'server="b"')),
        (*gauge("upstream_healthy", 0, 'server="a"'), *gauge("upstream_healthy", 1, 'server="b"')),
        says=("No vLLM server",),
    ),
    Case("RetriesDenied", counter("retries_denied_total"), gauge("retries_denied_total", 7), says=("budget",)),
    Case("ModelsReplaced", counter("fallbacks_total"), gauge("fallbacks_total", 7), says=("fallback",)),
    Case(
        "ServerMetricsMissing",
        gauge("upstream_scrape_up", 0, 'server="gpu-1:8000"'),
        gauge("upstream_scrape_up", 1, 'server="gpu-1:8000"'),
        says=("gpu-1:8000",),
    ),
    Case(
        "ErrorRate",
        (("requests_total", FAILED, "0+6x60"), ("requests_total", DONE, "0+54x60")),
        (("requests_total", FAILED, "0+2x60"), ("requests_total", DONE, "0+58x60")),
        says=("10%", "qwen", "upstream_failed with status 502 at server gpu-1:8000"),
    ),
    Case(
        "ErrorRate",
        (("requests_total", DONE.replace("200", "500"), "0+6x60"), ("requests_total", DONE, "0+54x60")),
        (("requests_total", 'model="qwen", server="", outcome="refused", status="429"', "0+6x60"),),
        says=("10%", "qwen", "completed with status 500 at server gpu-1:8000"),
    ),
    Case(
        "FirstByteLate",
        (
            bucket(TTFT, STREAM, "10", "0+80x60"),
            bucket(TTFT, STREAM, "30", "0+100x60"),
            bucket(TTFT, STREAM, "+Inf", "0+100x60"),
        ),
        (
            bucket(TTFT, STREAM, "10", "0+95x60"),
            bucket(TTFT, STREAM, "30", "0+100x60"),
            bucket(TTFT, STREAM, "+Inf", "0+100x60"),
        ),
        minutes=15,
        says=("qwen", "20s"),
    ),
    Case("RequestsQueue", gauge("queued_requests", 3), gauge("queued_requests", 0), says=("3 requests",)),
    Case(
        "QueueWaitLong",
        (
            bucket("queue_wait_seconds", OF_GPU, "10", "0+80x60"),
            bucket("queue_wait_seconds", OF_GPU, "+Inf", "0+100x60"),
            bucket("queue_wait_seconds", OF_GPU, "30", "0+100x60"),
        ),
        (
            bucket("queue_wait_seconds", OF_GPU, "10", "0+95x60"),
            bucket("queue_wait_seconds", OF_GPU, "+Inf", "0+100x60"),
            bucket("queue_wait_seconds", OF_GPU, "30", "0+100x60"),
        ),
        minutes=15,
        says=("qwen", "20s"),
    ),
    Case("NoRoomForBodies", counter("bodies_without_room_total"), gauge("bodies_without_room_total", 2)),
    Case(
        "BudgetNearlySpent",
        gauge("budgets", 2, 'kind="team", used="0.9"'),
        (*gauge("budgets", 0, 'kind="team", used="0.9"'), *gauge("budgets", 5, 'kind="team", used="0.8"')),
        says=("kind team that are used to 90 % or more: 2",),
    ),
    Case(
        "GatewayBudgetNearlySpent",
        gauge("budgets", 1, 'kind="proxy", used="0.9"'),
        gauge("budgets", 1, 'kind="key", used="0.9"'),
        says=("whole gateway",),
    ),
    Case(
        "LedgerCannotBeWritten",
        gauge("ledger_spool_writable", 0),
        gauge("ledger_spool_writable", 1),
        says=("full or broken",),
    ),
    Case("LedgerLosesRows", counter("ledger_rows_lost_total"), gauge("ledger_rows_lost_total", 3), says=("lost",)),
    Case("LedgerLosesRows", counter("ledger_set_aside_total"), gauge("ledger_set_aside_total", 3), says=("aside",)),
    Case("LedgerDatabaseAway", gauge("ledger_database_up", 0), gauge("ledger_database_up", 1)),
    Case(
        "SpoolGrows",
        gauge("ledger_spool_oldest_row_seconds", 90),
        gauge("ledger_spool_oldest_row_seconds", 2),
        says=("1m 30s",),
    ),
    Case(
        "SumsLate",
        gauge("ledger_gathered_oldest_row_seconds", 180),
        gauge("ledger_gathered_oldest_row_seconds", 30),
        says=("3m 0s", "Nothing is lost"),
    ),
    Case(
        "UsageExportLate",
        gauge("usage_export_overdue_seconds", 4 * 3_600),
        gauge("usage_export_overdue_seconds", 2 * 3_600),
        minutes=40,
        says=("4h 0m 0s overdue", "GET /usage/exports"),
    ),
    Case("DatabaseAway", gauge("database_up", 0), gauge("database_up", 1), says=("does not answer",)),
    Case(
        "DatabaseSlow",
        mean("database_transaction_seconds", 'kind="write"', "0+60x60", "0+90x60"),
        mean("database_transaction_seconds", 'kind="write"', "0+60x60", "0+1x60"),
        minutes=15,
        says=("a write takes 1.5s",),
    ),
    Case(
        "AuditIncomplete",
        counter("audit_events_total", 'result="failed"'),
        counter("audit_events_total", 'result="written"'),
        says=("audit",),
    ),
    Case("RedisAway", gauge("limits_redis_up", 0), gauge("limits_redis_up", 1), says=("Redis",)),
    Case("GatewayAbsent", (("up", "", "0x60"),), (("up", "", "1x60"),), says=("gw:4000",)),
    Case("GatewayAbsent", (), (("up", "", "1x60"),)),
    Case(
        "GatewayRestarted",
        (("process_start_time_seconds", "", "1x5 300x60"),),
        (("process_start_time_seconds", "", "1x60"),),
        says=("gw:4000 was restarted",),
    ),
    Case(
        "WorkersMissing",
        (*gauge("workers_running", 1), *gauge("workers_configured", 2)),
        (*gauge("workers_running", 2), *gauge("workers_configured", 2)),
        says=("gw:4000 has 1 workers",),
    ),
    Case(
        "ProcessesEnd",
        (("process_ends_total", 'process="worker-1", reason="by SIGKILL"', "0+1x60"),),
        (
            ("process_ends_total", 'process="worker-1", reason="told"', "0+1x60"),
            ("process_ends_total", 'process="worker-1", reason="by SIGKILL"', "1x60"),
        ),
        says=("worker-1 of gw:4000 ends again",),
    ),
    Case(
        "ProcessesSilent",
        (*gauge("processes_answered", 2), *gauge("processes_running", 3)),
        (*gauge("processes_answered", 3), *gauge("processes_running", 3)),
        says=("A process of gw:4000",),
    ),
    Case(
        "EventLoopStalled",
        (
            ("event_loop_lag_seconds_count", "", "0+240x60"),
            ("event_loop_lag_seconds_bucket", 'le="1.0"', "0+240x7 1919+240x60"),
        ),
        (
            ("event_loop_lag_seconds_count", "", "0+240x60"),
            ("event_loop_lag_seconds_bucket", 'le="1.0"', "0+240x60"),
        ),
        says=("stood still",),
    ),
    Case(
        "EventLoopLate",
        mean("event_loop_lag_seconds", "", "0+200x60", "0+50x60"),
        mean("event_loop_lag_seconds", "", "0+240x60", "0+1x60"),
        says=("250ms",),
    ),
    Case(
        "OpenFilesNearlyUsed",
        (*gauge("open_files", 900), *gauge("open_files_limit", 1_024)),
        (*gauge("open_files", 400), *gauge("open_files_limit", 1_024)),
        says=("87.89%",),
    ),
    Case(
        "OutOfSockets",
        counter("socket_shortages_total", 'operation="accept", error="EMFILE"'),
        gauge("socket_shortages_total", 4, 'operation="accept", error="EMFILE"'),
        says=("accept fails with EMFILE",),
    ),
    Case(
        "ConnectionsRefused",
        counter("connections_refused_total", 'limit="address"'),
        gauge("connections_refused_total", 4, 'limit="address"'),
        says=("limit address",),
    ),
    Case(
        "CertificateEnds",
        gauge(EXPIRY, 10 * DAY, LISTENER),
        gauge(EXPIRY, 20 * DAY, LISTENER),
        says=("listener certificate of *:443 ends in 9d",),
    ),
    Case(
        "CertificateAboutToEnd",
        gauge(EXPIRY, 2 * DAY, 'use="server", server="gpu-1:8000"'),
        gauge(EXPIRY, 10 * DAY, 'use="server", server="gpu-1:8000"'),
        says=("server certificate of gpu-1:8000 ends in 1d",),
    ),
    Case(
        "CertificateEnded",
        gauge(EXPIRY, 60, LISTENER),
        gauge(EXPIRY, 2 * DAY, LISTENER),
        says=("*:443 has ended",),
    ),
    Case("ReloadFailed", gauge("last_reload_failed", 1), gauge("last_reload_failed", 0)),
    Case("RestartNeeded", gauge("restart_needed", 2), gauge("restart_needed", 0), minutes=70, says=("2 settings",)),
    Case("LogLinesDropped", counter("log_lines_dropped_total"), gauge("log_lines_dropped_total", 9)),
    Case(
        "DeliveriesWait",
        gauge("delivery_oldest_seconds", 400, 'sink="hook"'),
        gauge("delivery_oldest_seconds", 20, 'sink="hook"'),
        says=("gw:4000 cannot deliver to hook for 6m 40s",),
    ),
    Case(
        "DeliveriesDropped",
        counter("delivery_dropped_total", 'sink="s3"'),
        gauge("delivery_dropped_total", 9, 'sink="s3"'),
        says=("s3",),
    ),
]


def input_of(series: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
    found = []
    for name, labels, values in series:
        full = name if name in ("up", "process_start_time_seconds") else f"{BEGIN}{name}"
        joined = ", ".join(each for each in (GATEWAY, labels) if each)
        found.append({"series": f"{full}{{{joined}}}", "values": values})
    return found


def promtool_test(name: str, case: Case, series: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Return one test for promtool. It expects an alert that cannot be, so that promtool says what there is."""
    return {
        "name": name,
        "interval": "1m",
        "input_series": input_of(series),
        "alert_rule_test": [
            {"eval_time": f"{case.minutes}m", "alertname": case.alert, "exp_alerts": [{"exp_labels": {"asked": name}}]}
        ],
    }


@pytest.fixture(scope="module")
def fired(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What fires in each case, as promtool writes it: by the case's number, in a bad and in a good time."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    tests = []
    for number, case in enumerate(CASES):
        tests += [promtool_test(f"{number}-bad", case, case.series), promtool_test(f"{number}-well", case, case.well)]
    file = tmp_path_factory.mktemp("rules") / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    answers = re.findall(r'asked="([\w-]+)".*?got:(.*?)(?=\n\s*alertname:|\Z)', done.stdout + done.stderr, re.DOTALL)
    found = dict(answers)
    assert len(found) == len(tests), done.stdout + done.stderr
    return found


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.alert for case in CASES])
def test_an_alert_fires_by_its_fault_alone_and_names_the_cause(fired: dict[str, str], number: int) -> None:
    case = CASES[number]
    bad, well = fired[f"{number}-bad"], fired[f"{number}-well"]
    assert "Labels:" in bad, f"{case.alert} does not fire"
    assert [text for text in case.says if text not in bad] == [], bad
    assert "error expanding template" not in bad
    assert "Labels:" not in well, f"{case.alert} fires though all is well: {well}"


def test_every_rule_has_a_case() -> None:
    assert {case.alert for case in CASES} == {rule["alert"] for rule in every_rule()}


def test_every_rule_has_a_severity_texts_and_a_section_of_the_runbook() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)
    rules = every_rule()
    assert sorted(headings) == sorted(rule["alert"] for rule in rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        texts = rule["annotations"]
        assert set(texts) == {"summary", "description", "runbook_url"}, rule["alert"]
        assert texts["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"


def test_promtool_takes_the_rules_and_the_example_for_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    key = tmp_path / "gateway.key"
    key.write_text("sk-of-prometheus")
    example = PROMETHEUS.read_text("utf-8")
    named = "/etc/prometheus/vllm-passthrough.key"
    assert example.count(f"credentials_file: {named}") == 2
    config = tmp_path / "prometheus.yml"
    config.write_text(example.replace(named, str(key)).replace("- alerts.yml", f"- {RULES}"))
    done = subprocess.run([promtool, "check", "config", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(every_rule())} rules found" in done.stdout
