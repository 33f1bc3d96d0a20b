"""Certificates that end: in metrics, and in the log at the start, after reloads and once a day."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from twisted_vllm.app.telemetry.certificates import (
    DAY,
    CertificateCollector,
    CertificateWatch,
    KnownCertificate,
)

NOW = 1_800_000_000.0


class Watched:
    """Certificates that a test changes.

    Attributes:
        known: those in use.
        lines: level and text of what was logged.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.known: list[KnownCertificate] = []
        self.lines: list[tuple[str, str]] = []
        self.watch = CertificateWatch(lambda: self.known, self.clock, self.clock.seconds)

    def use(self, days: float, use: str = "listener", name: str = "*:443") -> None:
        self.known = [KnownCertificate(use, 1, name, NOW + days * DAY)]

    def note(self, event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).endswith("CertificateWatch"):
            self.lines.append((event["log_level"].name, formatEvent(event)))


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    observer = cast(ILogObserver, made.note)
    globalLogPublisher.addObserver(observer)
    yield made
    globalLogPublisher.removeObserver(observer)
    made.watch.stop()
    assert made.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("days", "level", "says"),
    [
        (13.9, "warn", "ends in 13.9 days, at 2027-"),
        (2.9, "error", "ends in 2.9 days, at 2027-"),
        (0.5, "error", "ends in 12.0 hours, at 2027-"),
        (0.005, "error", "ends in 7 minutes, at 2027-"),
        (-1.0, "error", "ended at 2027-"),
    ],
)
def test_one_that_ends_soon_is_told_at_the_start(watched: Watched, days: float, level: str, says: str) -> None:
    watched.use(days)
    watched.watch.start()
    [(found, text)] = watched.lines
    assert (found, says in text) == (level, True), text
    assert text.startswith("The certificate of the listener *:443")
    assert text.endswith("Replace the files that passthrough.listen names, then reload")


def test_one_that_ends_is_told_when_it_has_ended(watched: Watched) -> None:
    watched.use(0.5)
    watched.watch.start()
    watched.clock.advance(DAY / 2 - 60)
    assert len(watched.lines) == 1
    watched.clock.advance(62)
    assert [level for level, _ in watched.lines] == ["error", "error"]
    assert "*:443 ended at 2027-" in watched.lines[-1][1]
    watched.clock.advance(DAY / 4)
    assert len(watched.lines) == 2


def test_one_that_ends_late_is_not_told(watched: Watched) -> None:
    watched.use(14.1)
    watched.watch.start()
    assert watched.lines == []


@pytest.mark.parametrize(
    ("use", "begins"),
    [
        ("client", "The gateway's certificate for the server gpu-1:8000"),
        ("authority", "The last certificate of the authorities for the server gpu-1:8000"),
        ("server", "The certificate of the server gpu-1:8000"),
    ],
)
def test_each_use_says_whose_it_is(watched: Watched, use: str, begins: str) -> None:
    watched.use(1.0, use, "gpu-1:8000")
    watched.watch.start()
    [(_, text)] = watched.lines
    assert text.startswith(begins)


def test_it_is_told_once_a_day(watched: Watched) -> None:
    watched.use(16.5)
    watched.watch.start()
    for _ in range(3):
        watched.clock.advance(DAY)
    assert [text.partition(",")[0][-12:] for _, text in watched.lines] == ["in 13.5 days"]
    watched.clock.advance(DAY)
    assert len(watched.lines) == 2


def test_after_a_reload_the_files_in_effect_are_looked_at(watched: Watched) -> None:
    watched.use(100)
    watched.watch.start()
    watched.watch.reloaded()
    # in the turn of the reload, not all components have the new settings
    watched.use(1)
    watched.clock.advance(0)
    assert len(watched.lines) == 1


def test_a_gateway_that_does_not_serve_looks_at_nothing(watched: Watched) -> None:
    watched.use(1)
    watched.watch.reloaded()
    watched.clock.advance(1)
    assert watched.lines == []


def test_strangers_get_numbers_and_administrators_names() -> None:
    known = [KnownCertificate("listener", 1, "*:443", NOW), KnownCertificate("server", 7, "gpu-1:8000", NOW + 1)]

    def samples(named: bool) -> list[tuple[dict[str, Any], float]]:
        registry = CollectorRegistry()
        registry.register(CertificateCollector(lambda: known, named=named))
        return [(sample.labels, sample.value) for family in registry.collect() for sample in family.samples]

    assert samples(False) == [
        ({"use": "listener", "listener": "1", "server": ""}, NOW),
        ({"use": "server", "listener": "", "server": "7"}, NOW + 1),
    ]
    assert samples(True) == [
        ({"use": "listener", "listener": "*:443", "server": ""}, NOW),
        ({"use": "server", "listener": "", "server": "gpu-1:8000"}, NOW + 1),
    ]
