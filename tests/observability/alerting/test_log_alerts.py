"""Events of the log that are alerts."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogLevel
from twisted.python.threadable import isInIOThread
from zope.interface.verify import verifyObject

from twisted_vllm.config.alert_types import DATABASE_ALERT
from twisted_vllm.observability.alerting.alerts import HIGH, LOW, MEDIUM, Alert
from twisted_vllm.observability.alerting.log_alerts import LogAlerts
from twisted_vllm.observability.logging.redaction import Redactor


def observer(reactor: Any, told: list[Alert]) -> LogAlerts:
    found = LogAlerts(reactor, Redactor(["hush-hush-hush"]), told.append)
    assert verifyObject(ILogObserver, found)
    return found


def event(level: LogLevel = LogLevel.error, **more: Any) -> dict[str, Any]:
    return {"log_format": "the database failed: {reason}", "log_level": level, "reason": "it is away", **more}


@pytest.mark.parametrize(("level", "expected"), [("critical", HIGH), ("error", HIGH), ("warn", MEDIUM), ("info", LOW)])
def test_a_marked_event_is_an_alert_of_its_level(reactor: Any, level: str, expected: str) -> None:
    told: list[Alert] = []
    observer(reactor, told)(event(LogLevel.levelWithName(level), **DATABASE_ALERT))
    assert told == [Alert("db_exceptions", "database", "the database failed: it is away", expected)]


@pytest.mark.parametrize("more", [{}, {"alert": None}])
def test_an_event_without_a_mark_is_none(reactor: Any, more: dict[str, Any]) -> None:
    told: list[Alert] = []
    observer(reactor, told)(event(**more))
    assert told == []


def test_a_repetition_at_level_debug_is_none(reactor: Any) -> None:
    told: list[Alert] = []
    observer(reactor, told)(event(LogLevel.debug, **DATABASE_ALERT))
    assert told == []


def test_an_alert_has_no_secrets(reactor: Any) -> None:
    told: list[Alert] = []
    observer(reactor, told)({**event(**DATABASE_ALERT), "reason": "postgres://u:hush-hush-hush@db"})
    assert "hush" not in told[0].text


@pytest_twisted.ensureDeferred
async def test_an_event_of_another_thread_is_told_in_the_reactors(reactor: Any) -> None:
    told: Deferred[tuple[Alert, bool]] = Deferred()
    found = LogAlerts(reactor, str, lambda alert: told.callback((alert, isInIOThread())))
    await deferToThread(found, event(**DATABASE_ALERT))
    alert, in_reactor = await told
    assert (alert.kind, in_reactor) == ("db_exceptions", True)
