"""Background responses are followed by one process each, and days are exported by the housekeeper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.end_to_end.end_to_end_harness import eventually
from tests.workers.connected import Connected, connected
from twisted_vllm.app.shared import background as shared_background
from twisted_vllm.app.shared.background import SharedBackground
from twisted_vllm.app.shared.exports import share_export
from twisted_vllm.workers.link import Link
from twisted_vllm.workers.siblings import ALONE


class Following:
    """Notes what is asked of background responses."""

    def __init__(self) -> None:
        self.on_seen_elsewhere: Callable[[str], None] | None = None
        self.looked_at: list[str] = []
        self.recovered = 0

    def seen(self, response_id: str) -> None:
        self.looked_at.append(response_id)

    def recover(self) -> None:
        self.recovered += 1


class Exporting:
    """Notes when it is to look for a day."""

    def __init__(self) -> None:
        self.look_elsewhere: Callable[[], None] | None = None
        self.looks = 0

    def look_soon(self) -> None:
        self.looks += 1


@pytest.fixture
def processes(reactor: Any) -> Iterator[Connected]:
    found = connected(reactor)
    yield found
    found.close()


async def begin(
    processes: Connected, reactor: Any, count: int
) -> tuple[list[Link], list[Following], list[SharedBackground]]:
    links = [await processes.ready(number, number) for number in range(count)]
    following = [Following() for _ in links]
    sharing: list[Any] = [
        SharedBackground(link, each, reactor)  # type: ignore[arg-type]  # it has what is used of the responses
        for link, each in zip(links, following, strict=True)
    ]
    return links, following, sharing


async def test_the_housekeeper_alone_goes_on_with_what_a_process_leaves(
    processes: Connected, reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_background, "TAKE_OVER_SECONDS", 0.02)
    links, following, sharing = await begin(processes, reactor, 4)
    # two that end together are one search
    links[1].close()
    links[2].close()
    await eventually(reactor, lambda: following[0].recovered == 1)
    assert following[3].recovered == 0
    sharing[0].stop()


async def test_nothing_is_taken_over_once_it_stops(processes: Connected, reactor: Any) -> None:
    links, following, sharing = await begin(processes, reactor, 2)
    links[1].close()
    await eventually(reactor, lambda: sharing[0]._call is not None)
    sharing[0].stop()
    sharing[0].stop()
    assert following[0].recovered == 0


async def test_a_client_s_look_at_another_worker_reaches_who_follows_the_response(
    processes: Connected, reactor: Any
) -> None:
    _, following, sharing = await begin(processes, reactor, 3)
    assert following[1].on_seen_elsewhere is not None
    following[1].on_seen_elsewhere("resp_1")
    await eventually(reactor, lambda: following[0].looked_at == following[2].looked_at == ["resp_1"])
    assert following[1].looked_at == []
    sharing[0].stop()


async def test_a_process_alone_tells_nobody(reactor: Any) -> None:
    following, export = Following(), Exporting()
    SharedBackground(ALONE, following, reactor)  # type: ignore[arg-type]  # as above
    share_export(ALONE, export)  # type: ignore[arg-type]  # it has what is used of the export
    assert following.on_seen_elsewhere is None
    assert export.look_elsewhere is None


async def test_a_worker_that_is_asked_for_a_day_has_the_housekeeper_look(processes: Connected, reactor: Any) -> None:
    links = [await processes.ready(number, number) for number in range(3)]
    exports = [Exporting() for _ in links]
    for link, export in zip(links, exports, strict=True):
        share_export(link, export)  # type: ignore[arg-type]  # as above
    assert exports[0].look_elsewhere is None
    assert exports[2].look_elsewhere is not None
    exports[2].look_elsewhere()
    await eventually(reactor, lambda: exports[0].looks == 1)
    assert exports[1].looks == exports[2].looks == 0
