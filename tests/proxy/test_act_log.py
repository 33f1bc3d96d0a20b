"""Acts on servers are written to the audit log, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.api_routes import classify
from twisted_vllm.auth.records import Principal
from twisted_vllm.context import Authorization, Peer, RequestContext
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.proxy.act_log import MOST_WAITING, ActedOn, ActLog
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.store import Store

ADMIN = Principal("key", "of-ada", "0123456789ab", allowed_routes=("privileged",))


def context_of(path: bytes = b"/sleep", query: bytes = b"") -> RequestContext:
    context = RequestContext(Peer("192.0.2.1", False), 0.0)
    context.request_id = b"request-1"
    context.principal = ADMIN
    context.authorization = Authorization(ADMIN, b"", classify(b"POST", path), path, path + query, False, False)  # type: ignore[arg-type]  # no payer is needed
    return context


class Written:
    """An act log, and what it wrote.

    Attributes:
        store: where it writes.
        held: what waits for the database, if `holds`.
    """

    def __init__(self, *, holds: bool = False) -> None:
        self.store = Store(MemoryDatabase())
        self.held: list[tuple[Deferred[Any], Callable[..., Any]]] = []
        self._holds = holds
        self.log = ActLog(self._change, ClientText(Redactor()), lambda context: context.peer.host, lambda: 1_000.0)

    def _change(self, work: Any) -> Deferred[Any]:
        if self._holds:
            held: Deferred[Any] = Deferred()
            self.held.append((held, work))
            return held
        return self.store.change(work)

    def entries(self) -> list[tuple[Any, ...]]:
        found: list[Any] = []
        reading = self.store.read(lambda transaction: transaction.page_of_audit(PageQuery(sort_by="at"), None, None))
        reading.addCallback(lambda page: found.extend(page.records))
        return [
            (each.action, each.actor, each.actor_name, each.object_type, each.object_id, each.after, each.client)
            for each in sorted(found, key=lambda each: each.id)
        ]


def test_an_act_has_an_entry_for_each_server_with_who_did_it() -> None:
    written = Written()
    acted = [ActedOn("gpu-1:8000", 200), ActedOn("gpu-2:8000", None, "upstream_timeout")]
    written.log.record(context_of(query=b"?level=2"), acted)
    who = ("server/sleep", ADMIN.hash_prefix, "of-ada", "server")
    query = {"query": "level=2"}
    assert written.entries() == [
        (*who, "gpu-1:8000", {"status": 200, **query}, "192.0.2.1"),
        (*who, "gpu-2:8000", {"status": None, "error": "upstream_timeout", **query}, "192.0.2.1"),
    ]


def test_a_long_name_fits_and_a_key_in_the_query_is_struck_out() -> None:
    written = Written()
    written.log.record(context_of(b"/v1/unload_lora_adapter", b"?api_key=sk-0123456789abcdef01"), [ActedOn("s", 200)])
    [(action, *_, after, _)] = written.entries()
    assert action == "server/unload_lora_adapter"
    assert "sk-0123456789abcdef01" not in str(after)


def test_an_act_of_nobody_and_on_nothing_has_no_entry() -> None:
    written = Written()
    written.log.record(context_of(), [])
    written.log.record(RequestContext(Peer("192.0.2.1", False), 0.0), [ActedOn("gpu-1:8000", 200)])
    assert written.entries() == []


def test_a_bounded_number_waits_for_the_database_and_what_is_missing_is_logged() -> None:
    written = Written(holds=True)
    with capturedLogs() as events:
        for _ in range(MOST_WAITING + 5):
            written.log.record(context_of(), [ActedOn("gpu-1:8000", 200)])
    assert len(written.held) == MOST_WAITING
    assert len(events) == 5
    assert "too many acts" in events[0]["reason"]
    with capturedLogs() as events:
        for held, _ in written.held:
            held.errback(StoreUnavailable("The database does not answer.", retry_after=1))
    assert len(events) == MOST_WAITING
    assert events[0]["log_level"].name == "error"
    written.log.record(context_of(), [ActedOn("gpu-1:8000", 200)])
    assert len(written.held) == MOST_WAITING + 1, "there is room again"
