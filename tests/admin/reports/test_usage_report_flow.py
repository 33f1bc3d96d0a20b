"""A report is read as its reader takes it, and one that breaks off does not look whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from zope.interface import implementer

from tests.admin.admin_harness import MASTER_KEY, Gateway
from tests.admin.reports.usage_rows import keep, row_at
from tests.http.server_harness import Client, LoggedFailures, SiteHarness, TcpTransport, get
from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.interfaces import IStore
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.usage.queries.reports import PAGE

GROUPS = 2 * PAGE + 500


@implementer(IStore)
class SlowStore(Store):
    """A store that reads when the test lets it, once the test says so."""

    def __init__(self) -> None:
        super().__init__(MemoryDatabase())
        self.slow = False
        self.held: list[tuple[Deferred[Any], Callable[[], Deferred[Any]]]] = []

    def read(self, work: Any) -> Deferred[Any]:
        if not self.slow:
            return super().read(work)
        waiting: Deferred[Any] = Deferred()
        self.held.append((waiting, lambda: Store.read(self, work)))
        return waiting

    def release(self) -> None:
        """Do what was asked first."""
        waiting, work = self.held.pop(0)
        work().chainDeferred(waiting)


class Reader:
    """A client of a gateway whose ledger holds more than two pages of end users."""

    def __init__(self) -> None:
        self.store = SlowStore()
        gateway = Gateway(self.store)
        keep(gateway, [row_at(number, "2026-02-01T00:00:00", end_user=f"{number:08d}") for number in range(GROUPS)])
        harness = SiteHarness()
        site = harness.make_site({}, gateway.recorded)
        self.harness = harness
        self.client = Client(site, TcpTransport())
        self.store.slow = True
        path = b"/usage/report?format=csv&group_by=end_user&start=2026-02-01"
        self.client.send(get(path, b"Authorization: Bearer " + MASTER_KEY.encode()))

    @property
    def lines(self) -> int:
        """Return how many groups the client has got."""
        received: bytes = self.client.transport.value()
        return received.count(b"2026-02-01,")

    @property
    def channel(self) -> Any:
        return self.client.channel


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_a_page_is_read_when_the_one_before_was_taken(reader: Reader) -> None:
    reader.store.release()
    assert (reader.lines, len(reader.store.held)) == (0, 1)
    reader.store.release()
    assert (reader.lines, len(reader.store.held)) == (PAGE, 1)
    reader.channel.pauseProducing()
    reader.store.release()
    assert reader.lines == 2 * PAGE
    assert reader.store.held == []
    reader.channel.resumeProducing()
    reader.store.release()
    assert reader.lines == GROUPS
    assert b"transfer-encoding: chunked" in reader.client.transport.value().lower()
    assert reader.client.transport.value().endswith(b"\r\n0\r\n\r\n")
    assert not reader.client.transport.aborted
    assert len(reader.harness.finished) == 1


@pytest.mark.parametrize("error", [StoreUnavailable("The database is away."), ZeroDivisionError()], ids=repr)
def test_what_breaks_off_is_cut(reader: Reader, error: Exception, logged_failures: LoggedFailures) -> None:
    reader.store.release()
    reader.store.release()
    waiting, _ = reader.store.held.pop(0)
    waiting.errback(error)
    reader.client.settle()
    assert reader.client.transport.aborted
    assert not reader.client.transport.value().endswith(b"\r\n0\r\n\r\n")
    assert reader.lines == PAGE
    assert len(reader.harness.finished) == 1
    # the store says itself why it is away
    assert len(logged_failures.flush(ZeroDivisionError)) == isinstance(error, ZeroDivisionError)


def test_what_cannot_begin_is_refused_as_ever(reader: Reader) -> None:
    waiting, _ = reader.store.held.pop(0)
    waiting.errback(StoreUnavailable("The database is away."))
    answer = reader.client.answer()
    assert (answer.status, answer.error()["code"]) == (503, "database_unavailable")


@pytest.mark.parametrize("paused", [False, True])
def test_nothing_is_read_for_a_reader_that_is_gone(reader: Reader, paused: bool) -> None:
    reader.store.release()
    if paused:
        reader.channel.pauseProducing()
        reader.store.release()
        assert reader.store.held == []
    reader.client.leave()
    if paused:
        assert reader.store.held == []
    else:
        reader.store.release()
        assert reader.store.held == []
    assert len(reader.harness.finished) == 1


def test_a_report_that_nobody_waits_for_any_more_is_cancelled() -> None:
    store = SlowStore()
    gateway = Gateway(store)
    client = Client(SiteHarness().make_site({}, gateway.recorded), TcpTransport())
    store.slow = True
    client.send(get(b"/spend/logs", b"Authorization: Bearer " + MASTER_KEY.encode()))
    waiting, _ = store.held.pop(0)
    assert not waiting.called
    client.leave()
    # by its cancellation: the store has not answered
    assert waiting.called


def test_a_report_is_counted_for_its_key_its_user_and_its_team_and_its_next_parts_are_marked() -> None:
    gateway = Gateway()
    made = gateway.make_key(user_id="ada", team_id=gateway.post("/team/new", {"team_alias": "red"}).json["team_id"])
    assert gateway.get("/usage/report", made["key"]).status == 200
    [(caller, begun), *parts] = gateway.reports.callers
    assert [kind for kind, _ in caller.scopes] == ["key", "user", "team"]
    assert not begun
    assert set(parts) == {(caller, True)}
    assert not caller.is_administrator
