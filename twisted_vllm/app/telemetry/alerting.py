"""Alerts to people and programs: LiteLLM's ``alerting``. Their modules are loaded once the settings ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.lifecycle import RequestObserver

if TYPE_CHECKING:
    from twisted_vllm.app.telemetry.running_alerts import RunningAlerts


class Alerting(TelemetryPart):
    """Sends alerts to Slack, and events of budgets to a webhook.

    Attributes:
        alerts: what sends them; None if no setting asks for any.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; nothing is sent before settings ask for it."""
        self.alerts: RunningAlerts | None = None
        self._surroundings = surroundings
        self._is_started = False

    def observers(self) -> Sequence[RequestObserver]:
        """Return what looks at requests, if people want to know of them."""
        return () if self.alerts is None else self.alerts.observers()

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Take what the settings ask for."""
        if not settings.alerting and self.alerts is None:
            return lambda: None
        from twisted_vllm.app.telemetry.running_alerts import RunningAlerts, plan_of

        plan = plan_of(settings)

        def apply() -> None:
            if self.alerts is None:
                self.alerts = RunningAlerts(self._surroundings)
                if self._is_started:
                    self.alerts.start()
            self.alerts.apply(plan)
            if not settings.alerting:
                self.alerts = None

        return apply

    def start(self) -> None:
        """Begin to tell."""
        self._is_started = True
        if self.alerts is not None:
            self.alerts.start()

    def stop(self) -> Deferred[None] | None:
        """Tell what waits, and end."""
        self._is_started = False
        return None if self.alerts is None else self.alerts.stop()
