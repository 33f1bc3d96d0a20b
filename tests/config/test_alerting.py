"""``general_settings.alerting``: what is known, where the URLs come from, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pytest

from tests.config.config_harness import BASE
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings

HOOK = "https://hooks.slack.com/services/T0/B0/hush"
SLACK = {**BASE, "SLACK_WEBHOOK_URL": HOOK}


class Loader(Protocol):
    def __call__(self, text: str, environ: Mapping[str, str], /) -> Settings: ...


def general(text: str) -> str:
    return f"general_settings: {{{text}}}"


def problems(load_text: Loader, text: str, environ: Mapping[str, str] = SLACK) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, environ)
    assert "hush" not in str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def test_nothing_is_sent_by_default(load_text: Loader) -> None:
    settings = load_text("", SLACK)
    assert (settings.alerting, settings.alerts.slack_webhook_url) == ((), None)


@pytest.mark.parametrize("variable", ["SLACK_WEBHOOK_URL", "ALERTING_WEBHOOK_URL"])
def test_the_url_comes_from_litellms_variables(load_text: Loader, variable: str) -> None:
    settings = load_text(general("alerting: [slack]"), {**BASE, variable: HOOK})
    assert settings.alerting == ("slack",)
    assert settings.alerts.slack_webhook_url == Secret(HOOK)


def test_the_url_in_the_file_wins(load_text: Loader) -> None:
    text = general("alerting: [slack]") + "\npassthrough: {alerts: {slack_webhook_url: https://chat.example.com/x}}"
    assert load_text(text, SLACK).alerts.slack_webhook_url == Secret("https://chat.example.com/x")


def test_all_of_litellms_settings_are_read(load_text: Loader) -> None:
    settings = load_text(
        """
        general_settings:
          alerting: [slack, webhook]
          alerting_threshold: 30
          alert_types: [budget_alerts, outage_alerts, daily_reports]
          alert_to_webhook_url: {budget_alerts: os.environ/BUDGETS, outage_alerts: ["https://a.example", "https://b.example"]}
          alerting_args: {log_to_console: true, daily_report_frequency: 43200}
        """,
        {**SLACK, "WEBHOOK_URL": "https://webhook.example", "BUDGETS": "https://budgets.example"},
    )
    assert settings.alerting_threshold == 30.0
    assert settings.alert_types == ("budget_alerts", "outage_alerts")
    assert settings.alert_to_webhook_url == {
        "budget_alerts": (Secret("https://budgets.example"),),
        "outage_alerts": (Secret("https://a.example"), Secret("https://b.example")),
    }
    assert settings.alerting_args.log_to_console
    assert settings.alerts.webhook_url == Secret("https://webhook.example")
    assert settings.warnings == (
        "general_settings.alert_types[2]: no such alerts are sent: ignored",
        "general_settings.alerting_args.daily_report_frequency: not implemented yet: ignored",
    )


def test_every_url_is_a_secret_of_the_log(load_text: Loader) -> None:
    text = general("alerting: [slack, webhook], alert_to_webhook_url: {budget_alerts: https://budgets.example}")
    settings = load_text(text, {**SLACK, "WEBHOOK_URL": "https://webhook.example"})
    assert {HOOK, "https://webhook.example", "https://budgets.example"} <= set(settings.secrets)
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "alerting: [pager]",
            "general_settings.alerting[0]: is not known here: write slack or webhook",
        ),
        (
            "alerting: [slak]",
            "general_settings.alerting[0]: is not known here: write slack or webhook; did you mean 'slack'?",
        ),
        (
            "alerting: [email]",
            "general_settings.alerting[0]: is not known here: write slack or webhook (mail comes from Prometheus' "
            "Alertmanager: see config/prometheus)",
        ),
        (
            "alerting: [webhook]",
            "general_settings.alerting: has webhook, and no URL is known for it (set WEBHOOK_URL, or write "
            "passthrough.alerts.webhook_url)",
        ),
        (
            "alerting: [slack], alert_types: [budget_alert]",
            "general_settings.alert_types[0]: must be one of budget_alerts, outage_alerts, cooldown_deployment, "
            "db_exceptions, failed_tracking_spend, llm_exceptions, llm_requests_hanging, llm_too_slow; did you mean "
            "'budget_alerts'?",
        ),
        (
            "alert_to_webhook_url: {budget_alerts: 'ftp://hush'}",
            "general_settings.alert_to_webhook_url.budget_alerts: must begin with https:// (such as "
            "https://hooks.slack.com/services/…)",
        ),
        (
            "alert_to_webhook_url: {budget_alerts: 'https://me:hush@x'}",
            "general_settings.alert_to_webhook_url.budget_alerts: must not hold a user name or a password",
        ),
        ("alerting_threshold: 0", "general_settings.alerting_threshold: must be a number of seconds above 0"),
    ],
)
def test_what_is_refused_is_explained(load_text: Loader, written: str, message: str) -> None:
    [found] = problems(load_text, general(written))
    assert found.startswith(message)


def test_slack_without_a_url_is_refused(load_text: Loader) -> None:
    assert problems(load_text, general("alerting: [slack]"), BASE) == [
        "general_settings.alerting: has slack, and no URL is known for it (set SLACK_WEBHOOK_URL, or write "
        "passthrough.alerts.slack_webhook_url)"
    ]


def test_a_variable_that_nobody_uses_is_not_looked_at(load_text: Loader) -> None:
    assert load_text("", {**BASE, "WEBHOOK_URL": "none of your business"}).warnings == ()


def test_a_url_without_tls_is_warned_of(load_text: Loader) -> None:
    settings: Any = load_text(general("alerting: slack"), {**BASE, "SLACK_WEBHOOK_URL": "http://chat.example/x"})
    assert settings.warnings == (
        "SLACK_WEBHOOK_URL: is not https://: whoever reads on the way learns the token of the URL",
    )
