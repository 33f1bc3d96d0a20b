"""Lines about requests that reached no server are bounded."""

from __future__ import annotations

import attrs
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from tests.observability.test_request_records import TENANT, request
from twisted_vllm.auth.records import MASTER
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.logging.unsent_lines import MAX_NAMED, STRANGERS, UnsentLines
from twisted_vllm.proxy.forwarded import ClientAddresses

NOW = 1_767_225_600.0
TENANT_WITH_ID = attrs.evolve(TENANT, key_id="k1")


@implementer(ILogObserver)
class Seen(list[LogEvent]):
    """The events that were logged."""

    def __call__(self, event: LogEvent) -> None:
        self.append(event)


def lines(limit: int | None = 3) -> UnsentLines:
    return UnsentLines(limit, ClientAddresses().of)


def reported(unsent: UnsentLines) -> list[tuple[int, str]]:
    """Return the counts and senders of a report."""
    events = Seen()
    globalLogPublisher.addObserver(events)
    try:
        unsent.report()
    finally:
        globalLogPublisher.removeObserver(events)
    return [(event["count"], event.get("sender", "others")) for event in events]


def test_a_key_has_so_many_lines_in_a_minute_and_one_line_says_how_many_more_there_were() -> None:
    unsent = lines()
    mine = request(principal=TENANT_WITH_ID)
    assert [unsent.has_line(mine, NOW) for _ in range(5)] == [True] * 3 + [False] * 2
    assert unsent.has_line(mine, NOW + 60)
    assert unsent.left_out == 2
    assert reported(unsent) == [(2, f"the key {TENANT.name}")]
    assert reported(unsent) == []


def test_an_address_without_a_key_likewise() -> None:
    unsent = lines()
    assert [unsent.has_line(request(host="192.0.2.1"), NOW) for _ in range(4)] == [True] * 3 + [False]
    assert unsent.has_line(request(host="192.0.2.2"), NOW)
    assert reported(unsent) == [(1, "192.0.2.1")]


def test_many_addresses_together_have_ten_times_as_many() -> None:
    unsent = lines()
    written = sum(unsent.has_line(request(host=f"10.0.{n >> 8}.{n & 255}"), NOW) for n in range(5_000))
    assert written == 3 * STRANGERS
    found = reported(unsent)
    assert len(found) <= MAX_NAMED + 1
    assert sum(count for count, _ in found) == 5_000 - written


def test_administrators_always_have_their_line_and_so_has_everybody_without_a_limit() -> None:
    unsent = lines()
    assert all(unsent.has_line(request(principal=MASTER), NOW) for _ in range(9))
    assert all(lines(None).has_line(request(), NOW) for _ in range(9))


def test_a_request_that_reached_a_server_has_its_line_and_counts_nothing() -> None:
    events = Seen()
    log = RequestLog(events, ClientText(Redactor()), ClientAddresses().of, lines(1), lambda: NOW)
    for sent in (True, False, False, True):
        made = request(sent=sent)
        made.finish(11.5, answered=True, drained=False, bytes_in=0, bytes_out=7, body_complete=True)
        log.finished(made)
    assert len(events) == 3
