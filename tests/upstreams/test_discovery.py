"""Names are followed: looked up again, kept when DNS fails, forgotten when nothing names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import provider

from twisted_vllm.config.settings import DiscoverySettings
from twisted_vllm.upstreams.discovered import EMPTY_ANSWERS, Answer, Found, ServiceName
from twisted_vllm.upstreams.discovery import Discovery, LookupFailed

PODS = ServiceName("dns", "vllm.default.svc")
OTHERS = ServiceName("srv", "_http._tcp.others.svc")
ONE, TWO = Found(0, "10.0.0.1"), Found(0, "10.0.0.2")


class Lab:
    """A Discovery whose look-ups the test answers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[ServiceName, Deferred[Answer]]] = []
        self.changes: list[dict[ServiceName, tuple[Found, ...]]] = []
        self.given_up = 0
        self.discovery = Discovery(
            self._look_up, self.clock, DiscoverySettings(interval=10.0), lambda: self.changes.append(self.known)
        )

    @property
    def known(self) -> dict[ServiceName, tuple[Found, ...]]:
        return dict(self.discovery.known)

    def _look_up(self, name: ServiceName, settings: DiscoverySettings) -> Deferred[Answer]:
        def given_up(_: object) -> None:
            self.given_up += 1

        deferred: Deferred[Answer] = Deferred(given_up)
        self.asked.append((name, deferred))
        return deferred

    def answer(self, *found: Found, ttl: float | None = None) -> None:
        self.asked.pop(0)[1].callback(Answer(found, ttl))

    def fail(self) -> None:
        self.asked.pop(0)[1].errback(LookupFailed("10.96.0.10 does not answer"))


@pytest.fixture
def lab() -> Lab:
    return Lab()


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: Any) -> None:
        if event.get("log_namespace", "").endswith("Discovery"):
            lines.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def test_names_are_resolved_from_the_start_and_again_after_the_interval(lab: Lab) -> None:
    lab.discovery.follow([PODS])
    assert not lab.asked
    lab.discovery.start()
    assert [name for name, _ in lab.asked] == [PODS]
    lab.answer(ONE)
    lab.clock.advance(9.9)
    assert not lab.asked
    lab.clock.advance(0.1)
    lab.answer(ONE, TWO)
    assert lab.changes == [{PODS: (ONE,)}, {PODS: (ONE, TWO)}]


def test_an_answer_that_is_valid_for_less_is_asked_for_earlier(lab: Lab) -> None:
    lab.discovery.follow([PODS])
    lab.discovery.start()
    lab.answer(ONE, ttl=3)
    lab.clock.advance(3)
    lab.answer(ONE, ttl=300)
    lab.clock.advance(10)
    assert len(lab.asked) == 1


def test_a_failure_keeps_the_servers_and_is_said_once_and_so_is_its_end(lab: Lab, log: list[str]) -> None:
    lab.discovery.follow([PODS])
    lab.discovery.start()
    lab.answer(ONE)
    for _ in range(3):
        lab.clock.advance(10)
        lab.fail()
    lab.clock.advance(10)
    lab.answer(ONE)
    assert lab.changes == [{PODS: (ONE,)}]
    assert log == [
        "The name vllm.default.svc has 1 servers: 10.0.0.1",
        "The name vllm.default.svc cannot be resolved, so its servers stay as they are (1): 10.96.0.10 does not answer",
        "The name vllm.default.svc is resolved again",
    ]


def test_a_service_without_servers_loses_them_when_dns_says_so_several_times(lab: Lab) -> None:
    lab.discovery.follow([PODS])
    lab.discovery.start()
    lab.answer(ONE)
    for _ in range(EMPTY_ANSWERS):
        lab.clock.advance(10)
        assert lab.known == {PODS: (ONE,)}
        lab.answer()
    assert lab.changes[1:] == [{PODS: ()}]


def test_a_name_that_nothing_names_any_more_is_given_up_and_one_that_stays_is_kept(lab: Lab) -> None:
    lab.discovery.follow([PODS, OTHERS])
    lab.discovery.start()
    assert [name for name, _ in lab.asked] == [OTHERS, PODS]
    lab.asked.reverse()
    lab.answer(ONE)
    lab.discovery.follow([PODS])
    assert (lab.given_up, lab.known) == (1, {PODS: (ONE,)})
    lab.asked.clear()
    lab.clock.advance(10)
    assert [name for name, _ in lab.asked] == [PODS]
    lab.discovery.follow([])
    assert (lab.given_up, lab.clock.getDelayedCalls()) == (2, [])


def test_a_new_name_is_resolved_at_once(lab: Lab) -> None:
    lab.discovery.start()
    lab.discovery.follow([PODS])
    assert len(lab.asked) == 1


def test_other_settings_hold_from_the_next_look_up_on(lab: Lab) -> None:
    lab.discovery.follow([PODS])
    lab.discovery.start()
    lab.answer(ONE)
    lab.discovery.settings = attrs.evolve(lab.discovery.settings, interval=1.0)
    lab.discovery.refresh()
    lab.answer(ONE)
    lab.clock.advance(1)
    assert len(lab.asked) == 1


def test_after_the_stop_nothing_is_asked(lab: Lab) -> None:
    lab.discovery.follow([PODS])
    lab.discovery.start()
    lab.discovery.stop()
    lab.discovery.stop()
    assert (lab.given_up, lab.clock.getDelayedCalls()) == (1, [])
    lab.asked.clear()
    lab.discovery.refresh()
    assert not lab.asked
