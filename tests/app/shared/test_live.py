"""The requests in flight of several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed

from tests.observability.live_rows import live_request
from tests.workers.connected import Connected, connected
from twisted_vllm.app.shared import live
from twisted_vllm.app.shared.live import SharedLive
from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, LiveRequest, WasCut, Whose
from twisted_vllm.workers.link import Link


@pytest.fixture
def processes(reactor: Any) -> Iterator[Connected]:
    found = connected(reactor)
    yield found
    found.close()


class InFlight:
    """What a process has in flight.

    Attributes:
        asked: what it was asked for.
        silent: whether it never answers.
    """

    def __init__(self, *requests: LiveRequest) -> None:
        self.requests: Sequence[LiveRequest] = requests
        self.asked: list[LiveQuery | Cut] = []
        self.silent = False

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        self.asked.append(query)
        if self.silent:
            return Deferred()
        count = len(self.requests)
        return succeed(LiveReport(5.0, count, count, self.requests, models=[("m", count)], keys=[("k", "", count)]))

    def cut(self, cut: Cut) -> WasCut:
        self.asked.append(cut)
        return WasCut([each for each in self.requests if each.request_id == cut.request_id])


def shared(own: InFlight, link: Link) -> SharedLive:
    # what a process has in flight is all that is asked of it
    return SharedLive(lambda: own, link)  # type: ignore[arg-type, return-value]


async def two(processes: Connected, one: InFlight, other: InFlight) -> tuple[SharedLive, SharedLive]:
    links = await processes.ready(1, 1), await processes.ready(2, 2)
    found: list[Any] = [shared(each, link) for each, link in zip((one, other), links, strict=True)]
    return found[0], found[1]


@pytest_twisted.ensureDeferred
async def test_whichever_is_asked_tells_what_all_have(processes: Connected) -> None:
    one = InFlight(live_request("a", started=3.0), live_request("b", started=1.0))
    other = InFlight(live_request("c", started=2.0, tokens=7))
    query = LiveQuery(Whose("key", "ada", ("x", "y")), limit=2)
    for shared in await two(processes, one, other):
        found = await shared.report(query)
        assert [each.request_id for each in found.requests] == ["b", "c"]
        assert (found.total, found.models, found.keys, found.missing) == (3, [("m", 3)], [("k", "", 3)], ())
    assert one.asked == other.asked == [query, query]


@pytest_twisted.ensureDeferred
async def test_a_process_that_does_not_answer_is_named(processes: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_SECONDS", 0.01)
    one, other = InFlight(live_request("a")), InFlight(live_request("b"))
    shared, _ = await two(processes, one, other)
    other.silent = True
    found = await shared.report(LiveQuery())
    assert (found.total, found.missing) == (1, ("worker-2",))


@pytest_twisted.ensureDeferred
async def test_a_cut_reaches_the_process_that_has_the_request(processes: Connected) -> None:
    one, other = InFlight(live_request("a")), InFlight(live_request("b"))
    shared, _ = await two(processes, one, other)
    assert await shared.cut(Cut("b")) == WasCut([live_request("b")])
    assert await shared.cut(Cut("c", Whose("k"))) == WasCut([])
    assert other.asked == [Cut("b"), Cut("c", Whose("k"))]
