"""What is wrong, in words, by the bounds of the alerts for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from twisted_vllm.observability.problems import rules
from twisted_vllm.observability.problems.facts import DiskFact, Facts, Figures, Problem, ServerFact
from twisted_vllm.observability.problems.memory import MOST_COUNTERS, MOST_PROBLEMS, ProblemMemory
from twisted_vllm.observability.problems.metric_rules import METRIC_RULES, GaugeRule, IncreaseRule
from twisted_vllm.observability.problems.rules import CERTIFICATES, DAY, WANTED
from twisted_vllm.ratelimit.used_budget import UsedBudget

REPOSITORY = Path(__file__).parents[3]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((REPOSITORY / "config/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
RUNBOOK = (REPOSITORY / "docs/alerts.md").read_text()
NOW = 2_000_000.0
DOLLAR = 10**12

#: alerts that compare times with former ones, or what Prometheus alone sees. The charts of the overview show these.
NOT_HERE = {
    *("ServerCutsAnswers", "ServerSlow", "ServerTimesOut", "ServerFlaps", "RetriesDenied", "ModelsReplaced"),
    *("ServerMetricsMissing", "ErrorRate", "FirstByteLate", "QueueWaitLong", "DatabaseSlow", "GatewayAbsent"),
    *("GatewayRestarted", "EventLoopStalled", "EventLoopLate"),
}


def gauge(name: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(f"vllm_passthrough_{name}", "", labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def counter(name: str, *values: tuple[float, dict[str, str]]) -> Metric:
    family = CounterMetricFamily(f"vllm_passthrough_{name}", "", labels=list(values[0][1]))
    for value, labels in values:
        family.add_metric(list(labels.values()), value)
    return family


def facts(*families: Metric, now: float = NOW, **others: Any) -> Facts:
    return Facts(now, Figures(families, WANTED), **others)


def judged(*families: Metric, **others: Any) -> list[Problem]:
    return ProblemMemory().judge(facts(*families, **others))


def texts(problems: Iterable[Problem]) -> list[str]:
    return [f"{each.severity}: {each.message}" for each in problems]


def test_a_gateway_of_which_all_is_well_has_no_problem() -> None:
    well = [
        *(gauge(name, 1) for name in ("ledger_spool_writable", "ledger_database_up", "database_up", "limits_redis_up")),
        *(gauge(name, 0) for name in ("ledger_spool_oldest_row_seconds", "last_reload_failed", "restart_needed")),
        gauge(CERTIFICATES, NOW + 15 * DAY, use="server", listener="", server="gpu-1"),
        *(gauge(name, 3) for name in ("workers_configured", "workers_running")),
        gauge("draining", 0, process="worker-1"),
    ]
    servers = [ServerFact("gpu-1", ["qwen"], "closed", "", 0.0)]
    assert judged(*well, servers=servers, disks=[DiskFact("the ledger's spool", 10**12, 10**13)]) == []
    assert judged() == []


# the alerts


def test_every_alert_has_its_problem_or_is_left_to_prometheus() -> None:
    source = "".join(Path(str(module)).read_text() for module in _sources())
    named = {alert for alert in ALERTS if f'"{alert}"' in source}
    assert named | NOT_HERE == set(ALERTS)
    assert named & NOT_HERE == set()


def _sources() -> Iterable[str]:
    folder = Path(str(rules.__file__)).parent
    return (str(folder / name) for name in ("rules.py", "metric_rules.py"))


@pytest.mark.parametrize("rule", METRIC_RULES, ids=lambda rule: f"{rule.alert}-{rule.metric}")
def test_a_rule_has_the_bound_and_the_severity_of_its_alert(rule: GaugeRule | IncreaseRule) -> None:
    alert = ALERTS[rule.alert]
    expression = re.sub(r"\s+", " ", alert["expr"])
    if isinstance(rule, GaugeRule):
        found = re.search(rf"vllm_passthrough_{rule.metric} (==|>|<) ([\d* .]+)", expression)
        assert found is not None
        assert (found[1], eval(found[2])) == (rule.compare, rule.bound)
        assert rule.hold in (0, 300)
    else:
        found = re.search(
            rf"increase\(vllm_passthrough_{rule.metric}_total(\{{[^}}]*\}})?\[(\d+)m\]\)\)? > (\d+)", expression
        )
        assert found is not None
        assert (int(found[2]) * 60, int(found[3])) == (rule.within, rule.more_than)
    assert alert["labels"]["severity"] == rule.severity


@pytest.mark.parametrize("rule", METRIC_RULES, ids=lambda rule: f"{rule.alert}-{rule.metric}")
def test_a_rule_on_a_metric_finds_what_is_wrong_and_says_it_in_words(rule: GaugeRule | IncreaseRule) -> None:
    labels = {rule.label: "Gpu"} if rule.label else {}
    memory = ProblemMemory()
    if isinstance(rule, GaugeRule):
        wrong = rule.bound + {"==": 0, ">": 500, "<": -1}[rule.compare]
        bad = gauge(rule.metric, wrong, **labels)
        found = memory.judge(facts(bad))
        if rule.hold:
            assert found == []
            found = memory.judge(facts(bad, now=NOW + rule.hold))
    else:
        assert memory.judge(facts(counter(rule.metric, (7, labels)))) == []
        found = memory.judge(facts(counter(rule.metric, (27, labels)), now=NOW + 30))
        assert "20" in found[0].message or rule.label == "result"
    [problem] = found
    assert (problem.code, problem.severity, problem.subject) == (rule.code, rule.severity, labels.get(rule.label, ""))
    assert "{" not in problem.message + problem.advice
    assert f"## {rule.alert}\n" in RUNBOOK and problem.runbook == f"docs/alerts.md#{rule.alert.lower()}"


# since when


def test_an_age_says_since_when_and_what_does_not_begins_when_it_was_seen() -> None:
    memory = ProblemMemory()
    spool = gauge("ledger_spool_oldest_row_seconds", 120)
    away = gauge("database_up", 0)
    found = {each.code: each for each in memory.judge(facts(spool, away))}
    assert found["spool_behind"].since is not None and found["spool_behind"].since.timestamp() == NOW - 120
    assert "2 minutes" in found["spool_behind"].message
    later = {each.code: each for each in memory.judge(facts(away, now=NOW + 600))}
    assert later["database_away"].since is not None and later["database_away"].since.timestamp() == NOW
    assert memory.judge(facts(gauge("database_up", 1), now=NOW + 700)) == []
    [again] = memory.judge(facts(away, now=NOW + 800))
    assert again.since is not None and again.since.timestamp() == NOW + 800


def test_what_was_counted_long_ago_is_no_problem_any_more() -> None:
    memory = ProblemMemory()
    dropped = "log_lines_dropped"
    seen = []
    for minute, count in enumerate([0, 0, 9, 9, 9, 9, 9, 9, 9, 12]):
        found = memory.judge(facts(counter(dropped, (count, {})), now=NOW + 60 * minute))
        seen.append([each.message.split()[0] for each in found])
    assert seen == [[], [], ["9"], ["9"], ["9"], ["9"], ["9"], [], [], ["3"]]


def test_a_counter_that_begins_anew_counts_from_zero_and_a_label_that_appears_as_well() -> None:
    memory = ProblemMemory()
    for time, values in enumerate([[(100, "a")], [(2, "a"), (5, "b")]]):
        family = counter("delivery_dropped", *((count, {"sink": sink}) for count, sink in values))
        found = memory.judge(facts(family, now=NOW + 60 * time))
    assert sorted(each.message.split(" were")[0] for each in found) == ["2 items for a", "5 items for b"]


def test_the_first_count_of_all_is_a_rise_if_nothing_was_counted_at_the_first_look() -> None:
    memory = ProblemMemory()
    assert memory.judge(facts()) == []
    ends = counter("process_ends", (2, {"process": "worker-1", "reason": "by SIGKILL"}))
    [problem] = memory.judge(facts(ends, now=NOW + 30))
    assert problem.message.startswith("worker-1 ended 2 times")


def test_what_is_remembered_and_told_has_a_bound() -> None:
    memory = ProblemMemory()
    for now in (NOW, NOW + 60):
        family = counter("delivery_dropped", *((now, {"sink": str(number)}) for number in range(3_000)))
        found = memory.judge(facts(family, now=now))
    assert len(found) == MOST_PROBLEMS < MOST_COUNTERS


# servers


@pytest.mark.parametrize(
    ("reason", "alert", "word"),
    [
        ("connection_refused", "ServerDead", "nothing answers"),
        ("name_not_found", "ServerDead", "nothing answers"),
        ("timeout", "ServerFrozen", "does not answer in time"),
        ("status_503", "ServerErrors", "answers errors (status_503)"),
        ("tls_failed", "ServerSpeaksWrongly", "cannot be talked to"),
        ("protocol_error", "ServerSpeaksWrongly", "cannot be talked to"),
        ("answer_cut", "", "fails"),
    ],
)
def test_a_server_that_is_out_says_why_and_since_when(reason: str, alert: str, word: str) -> None:
    servers = [
        ServerFact("gpu-1", ["qwen"], "dead", reason, NOW - 90),
        ServerFact("gpu-2", ["qwen"], "closed", "", 0.0),
    ]
    [problem] = judged(servers=servers)
    assert (problem.code, problem.severity, problem.subject) == ("server_down", "warning", "gpu-1")
    assert word in problem.message
    assert problem.since is not None and problem.since.timestamp() == NOW - 90
    assert problem.runbook == (f"docs/alerts.md#{alert.lower()}" if alert else "")
    if alert:
        expression = ALERTS[alert]["expr"]
        [pattern] = set(re.findall(r'upstream_out\{reason=~?"([^"]*)"\}', expression))
        assert re.fullmatch(pattern, reason)


def test_a_model_without_a_server_is_the_gravest_and_one_that_sleeps_is_none_of_that() -> None:
    servers = [
        ServerFact("gpu-1", ["qwen", "llama"], "open", "status_500", NOW - 50),
        ServerFact("gpu-2", ["qwen"], "dead", "timeout", NOW - 20),
        ServerFact("gpu-3", ["llama"], "closed", "", 0.0),
        ServerFact("gpu-4", ["mistral"], "sleeping", "sleeping", NOW - 5),
    ]
    assert texts(judged(servers=servers)) == [
        "critical: Model qwen has no server that gets requests: all are out.",
        "warning: Model mistral has no server that gets requests: all sleep.",
        "warning: Server gpu-2 gets no requests: it does not answer in time.",
        "warning: Server gpu-1 gets no requests: it answers errors (status_500).",
        "info: Server gpu-4 sleeps: it gets no requests.",
    ]


# budgets


def budget(kind: str = "team", percent: int = 80, name: str = "", id: str = "t1", ends: float = inf) -> UsedBudget:
    return UsedBudget(kind, id, percent * DOLLAR, 100 * DOLLAR, ends, name)


def test_budgets_are_told_from_80_percent_on_with_their_amounts() -> None:
    found = judged(budgets=[budget(percent=79), budget(percent=80, name="Red"), budget("key", 93, "ada", "k1", NOW)])
    assert texts(found) == [
        "warning: The budget of the key ada is used to 93 % ($93.00 of $100.00). It begins anew at "
        "1970-01-24 03:33 UTC.",
        "info: The budget of the team Red is used to 80 % ($80.00 of $100.00).",
    ]
    assert [each.subject for each in found] == ["key/k1", "team/t1"]


def test_a_budget_that_is_spent_refuses_and_that_of_the_gateway_is_critical() -> None:
    found = judged(
        budgets=[budget("user", 120, id="ada"), budget("proxy", 90, id="proxy"), budget("member", 100, id="t\x1fu")]
    )
    assert [(each.severity, each.code, each.subject) for each in found] == [
        ("critical", "budget_90", "proxy/"),
        ("warning", "budget_100", "user/ada"),
        ("warning", "budget_100", "member/t/u"),
    ]
    assert "is spent: requests are refused" in found[1].message
    assert "\x1f" not in "".join(each.message for each in found)


# certificates, processes, disks


@pytest.mark.parametrize(
    ("left", "severity", "alert", "says"),
    [
        (10 * DAY, "warning", "CertificateEnds", "ends in 10 days"),
        (2.5 * DAY, "critical", "CertificateAboutToEnd", "ends in 2 days"),
        (-1, "critical", "CertificateEnded", "has ended"),
    ],
)
def test_a_certificate_that_ends_says_whose_and_when(left: float, severity: str, alert: str, says: str) -> None:
    listener = gauge(CERTIFICATES, NOW + left, use="listener", listener="ssl:443", server="")
    [problem] = judged(listener)
    assert (problem.severity, problem.subject) == (severity, "listener ssl:443")
    assert "the listener ssl:443" in problem.message and says in problem.message and "reload" in problem.advice
    assert problem.runbook == f"docs/alerts.md#{alert.lower()}"
    assert ALERTS[alert]["labels"]["severity"] == severity


def test_bounds_of_certificates_and_open_files_are_those_of_the_alerts() -> None:
    assert "3 * 86400" in ALERTS["CertificateEnds"]["expr"] and "14 * 86400" in ALERTS["CertificateEnds"]["expr"]
    assert (rules.CERTIFICATE_VERY_SOON, rules.CERTIFICATE_SOON) == (3 * DAY, 14 * DAY)
    assert ALERTS["OpenFilesNearlyUsed"]["expr"].endswith(f"> {rules.OPEN_FILES}")


def test_processes_that_are_missing_silent_draining_or_out_of_files_are_told() -> None:
    found = judged(
        gauge("workers_configured", 4),
        gauge("workers_running", 3),
        gauge("processes_running", 5),
        gauge("processes_answered", 4),
        gauge("draining", 1, process="worker-2"),
        gauge("open_files", 750, process="worker-1"),
        gauge("open_files_limit", 1_000, process="worker-1"),
    )
    assert {each.code for each in found} == {"workers_missing", "processes_silent", "draining", "open_files"}
    assert "3 of 4 workers serve" in texts(found)[0] + texts(found)[1] + texts(found)[2]
    assert [each.subject for each in found if each.code == "draining"] == ["worker-2"]


def test_a_disk_that_is_nearly_full_is_told_and_a_small_one_that_is_not_is_none() -> None:
    assert judged(disks=[DiskFact("the database", 3 * 1024**3, 8 * 1024**3)]) == []
    [low] = judged(disks=[DiskFact("the database", 400 * 1024**2, 8 * 1024**3)])
    [lower] = judged(disks=[DiskFact("the database", 100 * 1024**2, 8 * 1024**3)])
    assert (low.severity, lower.severity) == ("warning", "critical")
    assert "400 MiB are free" in low.message


def test_a_database_file_that_is_lost_is_critical() -> None:
    [problem] = judged(file_is_lost=True)
    assert (problem.code, problem.severity) == ("database_file_lost", "critical")
