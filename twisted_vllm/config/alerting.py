"""The settings of alerts to people: LiteLLM's ``alerting``, and what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from twisted_vllm.config.alert_types import ALERT_TYPES
from twisted_vllm.config.checks import checker, flag, kind_of, list_of, optional, text, whole
from twisted_vllm.config.declaration import setting
from twisted_vllm.config.litellm import names
from twisted_vllm.config.problems import EnvironmentText, Place, Rejected, suggestion
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.web_urls import web_url

#: where alerts go
SLACK, WEBHOOK = "slack", "webhook"
CHANNELS = (SLACK, WEBHOOK)

#: LiteLLM's other kinds: reports, and events that the audit log has
_NOT_SENT = names(
    """
    daily_reports fallback_reports internal_user_created internal_user_deleted internal_user_updated
    mcp_pinned_tools_changed mcp_tool_description_blocked model_deprecation_warnings new_internal_user_created
    new_model_added new_team_created new_virtual_key_created region_outage_alerts spend_reports team_deleted
    team_updated user_spend_anomalies user_spend_thresholds virtual_key_deleted virtual_key_updated
    """
)

#: LiteLLM's channels that the gateway lacks, and what to do
_OTHER_CHANNELS = {
    "email": "mail comes from Prometheus' Alertmanager: see config/prometheus",
    "ms_teams": "send webhook to a flow of Teams",
}

#: LiteLLM's arguments that decide nothing here
IGNORED_ARGS = names(
    """
    budget_alert_ttl daily_report_frequency daily_spend_per_user_threshold major_outage_alert_threshold
    max_outage_alert_list_size minor_outage_alert_threshold monthly_spend_per_user_threshold outage_alert_ttl
    region_outage_alert_ttl report_check_interval spend_anomaly_baseline_days spend_anomaly_min_spend
    spend_anomaly_multiplier user_spend_check_interval
    """
)


#: the variables that name a URL, as in LiteLLM; the first that is set wins
_SLACK_VARIABLES = ("SLACK_WEBHOOK_URL", "ALERTING_WEBHOOK_URL")
_WEBHOOK_VARIABLES = ("WEBHOOK_URL",)


@checker("choice", ", ".join(CHANNELS))
def channel(value: object, place: Place) -> str:
    """Check for where alerts go."""
    found = text(value, place)
    if found in CHANNELS:
        return found
    instead = _OTHER_CHANNELS.get(found)
    hint = f" ({instead})" if instead else suggestion(found, CHANNELS)
    raise Rejected(f"is not known here: write {' or '.join(CHANNELS)}{hint}")


@checker("list of kinds of alerts", ", ".join(ALERT_TYPES))
def alert_types(value: object, place: Place) -> tuple[str, ...]:
    """Check for kinds of alerts; LiteLLM's others cause a warning."""
    found = []
    for index, name in enumerate(list_of(text)(value, place)):
        if name in ALERT_TYPES:
            found.append(name)
        elif name in _NOT_SENT:
            place.item(index).warn("no such alerts are sent: ignored")
        else:
            place.item(index).refuse(f"must be one of {', '.join(ALERT_TYPES)}{suggestion(name, ALERT_TYPES)}")
    return tuple(dict.fromkeys(found))


@checker("URL", "https://, or http:// with a warning")
def webhook_url(value: object, place: Place) -> Secret:
    """Check for the URL of a webhook, which may hold a token: nothing shows it."""
    return Secret(
        web_url(
            text(value, place),
            place,
            "https://hooks.slack.com/services/…",
            in_clear="whoever reads on the way learns the token of the URL",
        )
    )


@checker("mapping of kinds of alerts to URLs", "one or a list each")
def urls_by_type(value: object, place: Place) -> Mapping[str, tuple[Secret, ...]]:
    """Check for the URLs of single kinds of alerts."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Rejected(f"must be a mapping, not {kind_of(value)}")
    found: dict[str, tuple[Secret, ...]] = {}
    for name, urls in value.items():
        at = place.key(name)
        if name in _NOT_SENT:
            at.warn("no such alerts are sent: ignored")
        elif name not in ALERT_TYPES:
            at.refuse(f"is no kind of alerts: write one of {', '.join(ALERT_TYPES)}{suggestion(name, ALERT_TYPES)}")
        else:
            checked = at.attempt(list_of(webhook_url, lone=True), urls)
            if checked:
                found[name] = checked
    return found


@attrs.frozen
class AlertingArgs:
    """LiteLLM's ``alerting_args``."""

    log_to_console: bool = setting(False, flag, "Whether each alert is also a line of the log.")


@attrs.frozen
class AlertSettings:
    """What LiteLLM has no setting for, or reads from the environment only."""

    slack_webhook_url: Secret | None = setting(
        None,
        optional(webhook_url, "SLACK_WEBHOOK_URL or ALERTING_WEBHOOK_URL of the environment", empty=True),
        "Where alerts for people go: an incoming webhook of Slack, or of a program that takes the same format.",
    )
    webhook_url: Secret | None = setting(
        None,
        optional(webhook_url, "WEBHOOK_URL of the environment", empty=True),
        "Where budget alerts go as JSON for programs.",
    )
    max_per_minute: int = setting(
        10,
        whole(),
        "Messages for people in a minute. What is alike is one message with a count; of the rest, one message says "
        "how many there were of each kind.",
        unit="messages",
    )


def resolve(found: dict[str, Any], root: Place) -> None:
    """Take URLs of the environment where alerts need them, and refuse alerts that would go nowhere.

    Args:
        found: the settings by attribute.
        root: the file's place.
    """
    channels: Sequence[str] = found.get("alerting") or ()
    settings: AlertSettings = found.get("alerts") or AlertSettings()
    refused = root.report.refused_below
    for name, attribute, variables in (
        (SLACK, "slack_webhook_url", _SLACK_VARIABLES),
        (WEBHOOK, "webhook_url", _WEBHOOK_VARIABLES),
    ):
        path = f"passthrough.alerts.{attribute}"
        if name not in channels or getattr(settings, attribute) is not None or refused(path):
            continue
        variable = next((each for each in variables if root.environ.get(each)), None)
        if variable is not None:
            url = root.at(variable).attempt(webhook_url, EnvironmentText(root.environ[variable]))
            changed: dict[str, Any] = {attribute: url}
            settings = attrs.evolve(settings, **changed)
        elif name == WEBHOOK or not found.get("alert_to_webhook_url"):
            root.at("general_settings.alerting").refuse(
                f"has {name}, and no URL is known for it (set {variables[0]}, or write {path})"
            )
    found["alerts"] = settings
