"""The kinds of alerts, by LiteLLM's names, and the marks of log events that are alerts as well."""

from __future__ import annotations

from typing import TypedDict

BUDGETS = "budget_alerts"
OUTAGE = "outage_alerts"
COOLDOWN = "cooldown_deployment"
DATABASE = "db_exceptions"
LEDGER = "failed_tracking_spend"
FAILURES = "llm_exceptions"
HANGING = "llm_requests_hanging"
TOO_SLOW = "llm_too_slow"

#: all kinds
ALERT_TYPES = (BUDGETS, OUTAGE, COOLDOWN, DATABASE, LEDGER, FAILURES, HANGING, TOO_SLOW)


class AlertMark(TypedDict):
    """Keys of a log event that is an alert as well.

    Attributes:
        alert: the kind of alert; None for none.
        alert_about: what it is about, such as the name of a server; alerts about the same are alike.
    """

    alert: str | None
    alert_about: str


#: of the database
DATABASE_ALERT = AlertMark(alert=DATABASE, alert_about="database")
#: of Redis
REDIS_ALERT = AlertMark(alert=DATABASE, alert_about="redis")
#: of the supervisor, which does not answer
SUPERVISOR_ALERT = AlertMark(alert=OUTAGE, alert_about="supervisor")
#: of the ledger: its spool, its rows
LEDGER_ALERT = AlertMark(alert=LEDGER, alert_about="ledger")
#: of the process, which has no descriptors or ports left
SOCKETS_ALERT = AlertMark(alert=OUTAGE, alert_about="sockets")
