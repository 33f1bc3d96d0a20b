"""What is wrong: servers, models, budgets, certificates, processes, disks; and what `METRIC_RULES` find. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from twisted_vllm.money import float_dollars
from twisted_vllm.observability.problems.facts import DiskFact, Facts, Found, ServerFact, Severity
from twisted_vllm.observability.problems.metric_rules import METRIC_RULES, Increases
from twisted_vllm.observability.problems.words import dollars, duration, moment
from twisted_vllm.ratelimit.used_budget import UsedBudget

DAY = 86_400.0
#: seconds before the end of a certificate, as in the alerts
CERTIFICATE_SOON, CERTIFICATE_VERY_SOON = 14 * DAY, 3 * DAY
#: percent of a budget
BUDGET_SHARES = (80, 90, 100)
#: the share of open files that is told
OPEN_FILES = 0.7
#: A disk is nearly full with less than this share and fewer than so many bytes free; with the second, it is critical.
DISK_SHARE, DISK_BYTES, DISK_CRITICAL = 0.1, 5 * 1024**3, 256 * 1024**2

#: what the rules look at, besides METRIC_RULES
CERTIFICATES, DRAINING = "tls_certificate_expiry_timestamp_seconds", "draining"
_MORE = (
    *(CERTIFICATES, DRAINING, "open_files", "open_files_limit"),
    *("workers_configured", "workers_running", "processes_running", "processes_answered"),
)
#: all metrics that the rules look at, without what all names begin with
WANTED = frozenset((*_MORE, *(name for rule in METRIC_RULES for name in rule.metrics)))

#: what reasons of a server's state mean: the alert, the message, and what to do
_UNREACHABLE = (
    "ServerDead",
    "nothing answers at its address ({reason})",
    "Look whether its process or machine runs, and at vLLM's log.",
)
_FROZEN = (
    "ServerFrozen",
    "it does not answer in time",
    "Its process hangs, its GPU is stuck, or the network swallows packets: look at vLLM's log and nvidia-smi there.",
)
_ERRORS = (
    "ServerErrors",
    "it answers errors ({reason})",
    "Its engine is probably dead: look at vLLM's log for EngineDeadError or CUDA errors, and restart it.",
)
_WRONG = (
    "ServerSpeaksWrongly",
    "it cannot be talked to ({reason})",
    "Look at its certificate, at http:// and https:// in api_base, and at what listens there.",
)
_OTHER = ("", "it fails ({reason})", "Look at vLLM's log.")

_HOLDERS = {
    "key": "the key",
    "user": "the user",
    "team": "the team",
    "end_user": "the customer",
    "member": "the team member",
    "organization": "the organization",
    "model_budget": "one model, of",
    "proxy": "the whole gateway",
}


def find(facts: Facts, increases: Increases) -> Iterator[Found]:
    """Yield what is wrong, in no order."""
    yield from _servers(facts)
    for budget in facts.budgets:
        yield from _budget(budget)
    yield from _certificates(facts)
    yield from _processes(facts)
    for disk in facts.disks:
        yield from _disk(disk)
    if facts.file_is_lost:
        yield Found(
            "database_file_lost",
            "critical",
            "database",
            "",
            "The database's file was removed or replaced while the gateway runs. Keys that exist work, and nothing is "
            "stored.",
            "Put the file back, or restart the gateway with the file that is there.",
        )
    for rule in METRIC_RULES:
        yield from rule.find(facts.figures, increases, facts.now)


# servers


def _servers(facts: Facts) -> Iterator[Found]:
    by_model: dict[str, list[ServerFact]] = {}
    for server in facts.servers:
        for model in server.models:
            by_model.setdefault(model, []).append(server)
        yield from _server(server)
    for model, servers in by_model.items():
        if not any(each.state == "closed" for each in servers):
            yield _without_server(model, servers)


def _server(server: ServerFact) -> Iterator[Found]:
    if server.state == "closed":
        return
    if server.state == "sleeping":
        message = f"Server {server.name} sleeps: it gets no requests."
        advice = "Wake it if its models are needed."
        yield Found("server_sleeps", "info", "server", server.name, message, advice, since=server.since)
        return
    alert, why, advice = _why(server.reason)
    state = "is tried again" if server.state == "half_open" else "gets no requests"
    message = f"Server {server.name} {state}: {why.format(reason=server.reason)}."
    yield Found("server_down", "warning", "server", server.name, message, advice, alert, server.since)


def _why(reason: str) -> tuple[str, str, str]:
    if reason.startswith("connection_") or reason == "name_not_found":
        return _UNREACHABLE
    if reason == "timeout":
        return _FROZEN
    if reason.startswith("status_5"):
        return _ERRORS
    return _WRONG if reason in ("tls_failed", "protocol_error") else _OTHER


def _without_server(model: str, servers: list[ServerFact]) -> Found:
    asleep = all(each.state == "sleeping" for each in servers)
    which = f"Model {model}" if model else "What no entry of model_list serves"
    message = f"{which} has no server that gets requests: {'all sleep' if asleep else 'all are out'}."
    advice = "Wake one of them." if asleep else "Look at its servers first; its clients get errors, or its fallbacks."
    severity: Severity = "warning" if asleep else "critical"
    # since the last of them went
    since = max(each.since for each in servers)
    return Found("model_without_server", severity, "model", model, message, advice, "NoServer", since)


# budgets


def _budget(budget: UsedBudget) -> Iterator[Found]:
    percent = 100 * budget.share
    share = next((each for each in reversed(BUDGET_SHARES) if percent >= each), None)
    if share is None:
        return
    whole = budget.kind == "proxy"
    severity: Severity = "info" if share == 80 else "warning"
    if whole and share >= 90:
        severity = "critical"
    holder = _HOLDERS.get(budget.kind, budget.kind)
    name = "" if whole else f" {budget.name or budget.id.replace(chr(31), ' · ')}"
    ends = "" if budget.ends == inf else f" It begins anew at {moment(budget.ends)}."
    state = "is spent: requests are refused" if share >= 100 else f"is used to {int(percent)} %"
    message = f"The budget of {holder}{name} {state} ({_of(budget)}).{ends}"
    advice = "Raise litellm_settings.max_budget and reload." if whole else "Raise the budget, or tell its owner."
    alert = "GatewayBudgetNearlySpent" if whole else "BudgetNearlySpent"
    # a key is known by its hash to those who look for it
    id = budget.token if budget.kind == "key" and budget.token else budget.id
    subject = "" if whole else id.replace("\x1f", "/")
    yield Found(f"budget_{share}", severity, "budget", f"{budget.kind}/{subject}", message, advice, alert)


def _of(budget: UsedBudget) -> str:
    return f"{dollars(float_dollars(budget.spent))} of {dollars(float_dollars(budget.max_budget))}"


# certificates

_CERTIFICATES = {
    "listener": ("of the listener {name}", "clients cannot connect", "Replace the files that passthrough.listen names"),
    "client": ("of the gateway for server {name}", "the server may refuse it", "Replace the file of ssl_certificate"),
    "authority": (
        "of the authorities for server {name}",
        "it trusts no server of theirs",
        "Replace the file of ssl_ca",
    ),
    "server": ("of server {name}", "the gateway cannot connect to it", "Renew it on the server"),
}


def _certificates(facts: Facts) -> Iterator[Found]:
    for labels, ends in facts.figures.of(CERTIFICATES):
        left = ends - facts.now
        if left >= CERTIFICATE_SOON:
            continue
        which, then, what = _CERTIFICATES[labels["use"]]
        name = labels.get("listener") or labels.get("server", "")
        whose = which.format(name=name)
        since = None
        if left <= 0:
            alert, since = "CertificateEnded", ends
            message = f"The certificate {whose} has ended: {then}."
        else:
            alert = "CertificateAboutToEnd" if left <= CERTIFICATE_VERY_SOON else "CertificateEnds"
            message = f"The certificate {whose} ends in {duration(left)}, at {moment(ends)}: {then} from then on."
        advice = what if labels["use"] == "server" else f"{what}, then reload"
        severity: Severity = "warning" if alert == "CertificateEnds" else "critical"
        subject = f"{labels['use']} {name}"
        yield Found("certificate_ends", severity, "certificate", subject, message, f"{advice}.", alert, since)


# processes


def _processes(facts: Facts) -> Iterator[Found]:
    figures = facts.figures
    configured, running = figures.value("workers_configured"), figures.value("workers_running")
    if configured is not None and running is not None and running < configured:
        yield Found(
            "workers_missing",
            "warning",
            "process",
            "",
            f"{running:.0f} of {configured:.0f} workers serve. They serve all clients meanwhile.",
            "The log's lines `has ended` say how the missing ones ended.",
            "WorkersMissing",
        )
    answered, there = figures.value("processes_answered"), figures.value("processes_running")
    if answered is not None and there is not None and answered < there:
        yield Found(
            "processes_silent",
            "warning",
            "process",
            "",
            f"{there - answered:.0f} of {there:.0f} processes did not tell their figures: what is shown lacks theirs.",
            "It is overloaded, or stands still; one that stays silent for 30 seconds is killed.",
            "ProcessesSilent",
        )
    for labels, value in figures.of(DRAINING):
        if value:
            name = labels.get("process", "")
            yield Found(
                "draining",
                "info",
                "process",
                name,
                f"{name or 'The gateway'} drains: it takes no new requests, and ends when those in flight are over.",
                "Nothing, if you stopped or replaced it.",
            )
    limits = {labels.get("process", ""): value for labels, value in figures.of("open_files_limit")}
    for labels, value in figures.of("open_files"):
        name = labels.get("process", "")
        limit = limits.get(name, inf)
        if value / limit > OPEN_FILES:
            yield Found(
                "open_files",
                "warning",
                "process",
                name,
                f"{name or 'The gateway'} has {value:,.0f} of {limit:,.0f} possible files and sockets open.",
                "Soon connections are refused or wait: raise LimitNOFILE or ulimit -n, and look for clients that leak "
                "connections.",
                "OpenFilesNearlyUsed",
            )


def _disk(disk: DiskFact) -> Iterator[Found]:
    if disk.free >= DISK_BYTES or disk.free >= DISK_SHARE * disk.total:
        return
    severity: Severity = "critical" if disk.free < DISK_CRITICAL else "warning"
    message = f"The disk of {disk.use} is nearly full: {disk.free / 1024**2:,.0f} MiB are free."
    yield Found("disk_nearly_full", severity, "disk", disk.use, message, "Free space there, or enlarge it.")
