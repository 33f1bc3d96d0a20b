"""One process asks DNS, and the others ask it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.end_to_end.end_to_end_harness import eventually
from tests.workers.connected import Connected, connected
from twisted_vllm.config.settings import DiscoverySettings
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.upstreams.discovered import Answer, Found, ServiceName
from twisted_vllm.upstreams.discovery import Discovery
from twisted_vllm.upstreams.shared.sharing import ServerSharing
from twisted_vllm.workers.link import Link

NAME = ServiceName("dns", "vllm.example")
FIRST, SECOND = (Answer((Found(0, address),), 30.0) for address in ("192.0.2.1", "192.0.2.2"))


class Resolving:
    """A process that follows a name.

    Attributes:
        asked: how often it asked DNS itself.
        answer: what DNS says.
    """

    def __init__(self, link: Link, reactor: Any) -> None:
        self.asked = 0
        self.answer = FIRST
        sharing = ServerSharing(link, DeadlineSweeper(reactor), reactor)
        self.discovery = Discovery(sharing.look_up(self._ask), reactor, DiscoverySettings(), lambda: None)
        sharing.follow(self.discovery)
        self.discovery.follow([NAME])

    @property
    def found(self) -> tuple[Found, ...]:
        return self.discovery.known[NAME]

    def _ask(self, name: ServiceName, settings: DiscoverySettings) -> Deferred[Answer]:
        self.asked += 1
        return succeed(self.answer)


@pytest.fixture
def processes(reactor: Any) -> Any:
    found = connected(reactor)
    yield found
    found.close()


async def test_a_worker_learns_from_the_housekeeper_what_a_name_resolves_to(processes: Connected, reactor: Any) -> None:
    housekeeper = Resolving(await processes.ready(1, 0), reactor)
    worker = Resolving(await processes.ready(2, 1), reactor)
    housekeeper.discovery.start()
    worker.discovery.start()
    await eventually(reactor, lambda: worker.found == FIRST.found)
    housekeeper.answer = SECOND
    housekeeper.discovery.refresh()
    await eventually(reactor, lambda: worker.found == SECOND.found)
    assert (housekeeper.asked, worker.asked) == (2, 0)
    housekeeper.discovery.stop()
    worker.discovery.stop()


async def test_without_a_housekeeper_a_worker_asks_dns_itself(processes: Connected, reactor: Any) -> None:
    worker = Resolving(await processes.ready(2, 1), reactor)
    worker.discovery.start()
    await eventually(reactor, lambda: worker.found == FIRST.found)
    assert worker.asked == 1
    worker.discovery.stop()
