"""What is wrong by the metrics, by the same bounds as the alerts for Prometheus: one row for each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from twisted_vllm.observability.problems.facts import Figures, Found, Labels, Severity, SubjectType
from twisted_vllm.observability.problems.words import duration

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {"==": operator.eq, ">": operator.gt, "<": operator.lt}


class Increases(Protocol):
    """Knows former values of counters."""

    def increase(self, name: str, labels: tuple[str, ...], value: float, seconds: float) -> float:
        """Return by how much a counter rose in so many seconds, and keep its value."""


class GaugeRule(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A gauge that is out of its bounds.

    Attributes:
        alert: the alert that says the same.
        metric: the gauge, without what all begin with.
        compare: ``==``, ``>`` or ``<``.
        bound: what the value is compared with.
        code, severity, subject_type, message, advice: as in `Problem`; ``{value}``, ``{for}`` and the labels stand for
            what the sample has.
        label: the label that names the subject.
        is_age: whether the value is for how many seconds it has been so.
        hold: as in `Found`.
    """

    alert: str
    metric: str
    compare: str
    bound: float
    code: str
    severity: Severity
    subject_type: SubjectType
    message: str
    advice: str
    label: str = ""
    is_age: bool = False
    hold: float = 0.0

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it looks at."""
        return (self.metric,)

    def find(self, figures: Figures, increases: Increases, now: float) -> Iterator[Found]:
        """Yield what is wrong."""
        for labels, value in figures.of(self.metric):
            if _COMPARE[self.compare](value, self.bound):
                yield _found(self, labels, value, now - value if self.is_age else None)


class IncreaseRule(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A counter that rose.

    Attributes:
        metric: the counter, without ``_total`` and what all begin with.
        label: the label that names the subject, and by which it is added up; empty for none.
        more_than: by how much it may rise.
        within: in so many seconds.
        without: a label and its value that do not count.

    The others are as in `GaugeRule`.
    """

    alert: str
    metric: str
    within: float
    code: str
    severity: Severity
    subject_type: SubjectType
    message: str
    advice: str
    label: str = ""
    more_than: float = 0.0
    without: tuple[str, str] | None = None
    hold: float = 0.0

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it looks at."""
        return (self.metric,)

    def find(self, figures: Figures, increases: Increases, now: float) -> Iterator[Found]:
        """Yield what is wrong."""
        sums: dict[str, float] = {}
        for labels, value in figures.of(self.metric):
            if self.without is not None and labels.get(self.without[0]) == self.without[1]:
                continue
            name = labels.get(self.label, "")
            rise = increases.increase(self.metric, tuple(labels.values()), value, self.within)
            sums[name] = sums.get(name, 0.0) + rise
        for name, rise in sums.items():
            if rise > self.more_than:
                yield _found(self, {self.label: name} if self.label else {}, rise, None)


def _found(rule: GaugeRule | IncreaseRule, labels: Labels, value: float, since: float | None) -> Found:
    words = {**labels, "value": f"{value:,.0f}", "for": duration(value)}
    return Found(
        rule.code,
        rule.severity,
        rule.subject_type,
        labels.get(rule.label, ""),
        rule.message.format_map(words),
        rule.advice.format_map(words),
        rule.alert,
        since,
        rule.hold,
    )


#: all rules on one metric
METRIC_RULES: tuple[GaugeRule | IncreaseRule, ...] = (
    GaugeRule(
        alert="LedgerCannotBeWritten",
        metric="ledger_spool_writable",
        compare="==",
        bound=0,
        code="ledger_cannot_be_written",
        severity="critical",
        subject_type="ledger",
        message="The rows of the ledger cannot be written: the spool's disk is full or broken. They are kept in "
        "memory, and lost when there are too many.",
        advice="Free the disk of the spool's directory now, or repair its permissions.",
    ),
    IncreaseRule(
        alert="LedgerLosesRows",
        metric="ledger_rows_lost",
        within=900,
        code="ledger_rows_lost",
        severity="critical",
        subject_type="ledger",
        message="{value} rows of the ledger were lost in the last 15 minutes: reports and budgets lack that usage.",
        advice="The log says why. Look at the spool's disk.",
    ),
    IncreaseRule(
        alert="LedgerLosesRows",
        metric="ledger_set_aside",
        within=900,
        code="ledger_rows_set_aside",
        severity="critical",
        subject_type="ledger",
        message="{value} rows of the ledger were set aside in the last 15 minutes: they are damaged, or the database "
        "rejects them.",
        advice="The log says why; the rows are in a .damaged file in the spool's directory.",
    ),
    GaugeRule(
        alert="LedgerDatabaseAway",
        metric="ledger_database_up",
        compare="==",
        bound=0,
        code="ledger_database_away",
        severity="warning",
        subject_type="ledger",
        message="The database takes no rows of the ledger. Nothing is lost: they wait on disk. Reports and budgets are "
        "behind.",
        advice="Look at the database, and at the space on the spool's disk.",
    ),
    GaugeRule(
        alert="SpoolGrows",
        metric="ledger_spool_oldest_row_seconds",
        compare=">",
        bound=60,
        is_age=True,
        code="spool_behind",
        severity="warning",
        subject_type="ledger",
        message="The spool is behind: its oldest row has waited for {for}. Reports and budgets lack what waits.",
        advice="The database takes rows more slowly than they come, or none: look at its load, and watch the disk.",
    ),
    GaugeRule(
        alert="SumsLate",
        metric="ledger_gathered_oldest_row_seconds",
        compare=">",
        bound=120,
        is_age=True,
        code="sums_behind",
        severity="warning",
        subject_type="ledger",
        message="Spend and sums are behind: the oldest row has waited for {for}. Nothing is lost.",
        advice="Look at the log, and at the database's load.",
    ),
    GaugeRule(
        alert="UsageExportLate",
        metric="usage_export_overdue_seconds",
        compare=">",
        bound=10_800,
        is_age=True,
        code="export_behind",
        severity="warning",
        subject_type="export",
        message="The export of the ledger is late: a day has been overdue for {for}.",
        advice="GET /usage/exports says which day, and why the last attempt failed.",
    ),
    GaugeRule(
        alert="DatabaseAway",
        metric="database_up",
        compare="==",
        bound=0,
        code="database_away",
        severity="critical",
        subject_type="database",
        message="The database does not answer. Requests with known keys are served; no key can be made, changed or "
        "blocked, and no report can be read.",
        advice="Look at the database's process, disk and network; the log says `the database failed` and why.",
    ),
    IncreaseRule(
        alert="AuditIncomplete",
        metric="audit_events",
        label="result",
        within=900,
        without=("result", "written"),
        code="audit_incomplete",
        severity="warning",
        subject_type="database",
        message="{value} changes failed in the last 15 minutes together with their entries in the audit log.",
        advice="The database did not answer: look at it. The log names the requests.",
    ),
    GaugeRule(
        alert="RedisAway",
        metric="limits_redis_up",
        compare="==",
        bound=0,
        code="redis_away",
        severity="critical",
        subject_type="limits",
        message="Redis cannot be reached: limits and budgets are not shared with other gateways.",
        advice="Look at Redis and the network to it; the log says `does not count limits` and why.",
    ),
    IncreaseRule(
        alert="ProcessesEnd",
        metric="process_ends",
        label="process",
        within=900,
        more_than=1,
        without=("reason", "told"),
        code="process_restarts",
        severity="warning",
        subject_type="process",
        message="{process} ended {value} times in the last 15 minutes, each time with the requests that it carried.",
        advice="Look at the log's lines `has ended`, at what stands before them, and at the journal for the "
        "out-of-memory killer.",
    ),
    GaugeRule(
        alert="ReloadFailed",
        metric="last_reload_failed",
        compare="==",
        bound=1,
        code="reload_failed",
        severity="warning",
        subject_type="configuration",
        message="The last reload failed: the gateway runs with the former configuration, and a restart would fail as "
        "well.",
        advice="The log says `The configuration cannot be used` with all problems. Mend the file, check it with "
        "--check, then reload.",
    ),
    GaugeRule(
        alert="RestartNeeded",
        metric="restart_needed",
        compare=">",
        bound=0,
        code="restart_needed",
        severity="info",
        subject_type="configuration",
        message="{value} settings that the last reload read take effect at a restart alone.",
        advice="Restart the gateway when it suits. The log names them: `A restart is needed for`.",
    ),
    IncreaseRule(
        alert="LogLinesDropped",
        metric="log_lines_dropped",
        within=300,
        code="log_lines_dropped",
        severity="warning",
        subject_type="log",
        message="{value} lines of the log were lost in the last 5 minutes: its disk is full or slow, or the pipe that "
        "it writes to is not read.",
        advice="Free or mend the log's disk, or what reads the pipe.",
    ),
    IncreaseRule(
        alert="DeliveriesDropped",
        metric="delivery_dropped",
        label="sink",
        within=300,
        code="deliveries_dropped",
        severity="warning",
        subject_type="delivery",
        message="{value} items for {sink} were dropped in the last 5 minutes: its receiver is away or too slow, and "
        "the queue is full.",
        advice="Look at the receiver; the log says why deliveries fail.",
    ),
    GaugeRule(
        alert="DeliveriesWait",
        metric="delivery_oldest_seconds",
        compare=">",
        bound=300,
        is_age=True,
        label="sink",
        code="deliveries_wait",
        severity="warning",
        subject_type="delivery",
        message="Nothing could be delivered to {sink} for {for}.",
        advice="Look at its receiver; the log says `does not take what is delivered` and why.",
    ),
    GaugeRule(
        alert="RequestsQueue",
        metric="queued_requests",
        compare=">",
        bound=0,
        hold=300,
        code="requests_queue",
        severity="warning",
        subject_type="requests",
        message="{value} requests wait for a server: all servers of a model are at their limits.",
        advice="Add servers, or look whether one is out or slow.",
    ),
    IncreaseRule(
        alert="NoRoomForBodies",
        metric="bodies_without_room",
        within=300,
        code="no_room_for_bodies",
        severity="warning",
        subject_type="requests",
        message="{value} large requests were refused in the last 5 minutes: bodies fill limits.max_held_total_bytes.",
        advice="Raise it if there is memory, and look who sends them.",
    ),
    IncreaseRule(
        alert="OutOfSockets",
        metric="socket_shortages",
        label="error",
        within=300,
        code="out_of_sockets",
        severity="critical",
        subject_type="process",
        message="{value} times in the last 5 minutes there was no socket for a connection: {error}.",
        advice="EMFILE, ENFILE: raise LimitNOFILE or ulimit -n, or lower max_connections. EADDRNOTAVAIL: widen "
        "net.ipv4.ip_local_port_range.",
    ),
    IncreaseRule(
        alert="ConnectionsRefused",
        metric="connections_refused",
        label="limit",
        within=300,
        code="connections_refused",
        severity="warning",
        subject_type="requests",
        message="{value} client connections were refused in the last 5 minutes by the limit `{limit}`.",
        advice="total: raise limits.max_connections and the limit on open files. address: a proxy belongs into "
        "trusted_proxies, or a client leaks connections.",
    ),
)
