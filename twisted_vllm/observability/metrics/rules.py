"""How the figures of several processes become those of one gateway: the rule of each family.

Counters and histograms add, whatever their names. What the machine shows of a process stays apart. A gauge has a rule
here, as nobody can guess one: a test fails for a gauge without.
"""

from __future__ import annotations

from enum import Enum

from twisted_vllm.observability.metrics.names import PREFIX


class Rule(Enum):
    """What becomes of the samples with the same labels."""

    #: they are added
    SUM = "sum"
    #: the largest, or the smallest
    MAX = "max"
    MIN = "min"
    #: those of the first process that has the family: the housekeeper, if it answers
    FIRST = "first"
    #: each has the label `process`
    PROCESS = "process"


#: of counters and histograms, those that do not add: each process reloads
_OTHERS = {
    f"{PREFIX}_reloads": Rule.MAX,
    f"{PREFIX}_event_loop_lag_seconds": Rule.PROCESS,
    "python_info": Rule.FIRST,
}

#: what Python and the system know of a process
_OF_PROCESSES = ("process_", "python_gc_")

_SUMS = (
    *("requests_in_flight", "connections", "server_connections", "form_spool_bytes", "held_body_bytes"),
    *("bodies_waiting", "upstream_in_flight", "queued_requests", "database_unfinished", "reports_running"),
    *("reports_waiting", "background_responses", "contents_bytes", "delivery_queued", "delivery_spool_bytes"),
    *("ledger_unsaved_rows", "ledger_gathered_rows", "ledger_spool_rows", "ledger_spool_bytes"),
)
_MAXIMA = (
    *("connections_limit", "budgets", "last_reload_failed", "restart_needed", "delivery_oldest_seconds"),
    *("ledger_gathered_oldest_row_seconds", "ledger_spool_oldest_row_seconds"),
    *("workers_configured", "workers_running", "processes_running", "processes_answered"),
)
_MINIMA = (
    *("database_up", "limits_redis_up", "last_reload_success_timestamp_seconds", "ledger_spool_writable"),
    *("ledger_database_up", "tls_certificate_expiry_timestamp_seconds"),
)
_FIRSTS = (
    *("upstream_healthy", "upstream_state", "upstream_out", "upstream_waiting", "upstream_kv_cache_usage"),
    *("usage_export_last_day_timestamp_seconds", "usage_export_overdue_seconds"),
)
_PROCESSES = ("open_files", "open_files_limit", "draining")

_HOLDERS = ("api_key", "team", "user", "org")

#: the rules of gauges by their names
GAUGES = {
    **{f"{PREFIX}_{name}": Rule.SUM for name in _SUMS},
    **{f"{PREFIX}_{name}": Rule.MAX for name in _MAXIMA},
    **{f"{PREFIX}_{name}": Rule.MIN for name in _MINIMA},
    **{f"{PREFIX}_{name}": Rule.FIRST for name in _FIRSTS},
    **{f"{PREFIX}_{name}": Rule.PROCESS for name in _PROCESSES},
    "litellm_in_flight_requests": Rule.SUM,
    "litellm_deployment_state": Rule.MAX,
    "litellm_deployment_rpm_limit": Rule.MAX,
    "litellm_deployment_tpm_limit": Rule.MAX,
    **{f"litellm_remaining_{holder}_budget_metric": Rule.MIN for holder in _HOLDERS},
    **{f"litellm_{holder}_max_budget_metric": Rule.MAX for holder in _HOLDERS},
    **{f"litellm_{holder}_budget_remaining_hours_metric": Rule.MIN for holder in _HOLDERS},
    **{f"litellm_{holder}_rate_limit_allowed_metric": Rule.MAX for holder in ("api_key", "team")},
    # a limiter that is shared tells each process the same
    **{f"litellm_{holder}_rate_limit_used_metric": Rule.MAX for holder in ("api_key", "team")},
}

#: the types whose samples only grow
GROWING = frozenset({"counter", "histogram", "summary"})


def rule_of(name: str, kind: str) -> Rule:
    """Return the rule of a family.

    Args:
        name: its name, without ``_total``.
        kind: its type.
    """
    if name.startswith(_OF_PROCESSES):
        return Rule.PROCESS
    other = _OTHERS.get(name)
    if other is not None:
        return other
    if kind in GROWING:
        return Rule.SUM
    return GAUGES.get(name, Rule.FIRST)
