"""The ends of requests and connections: each is reported once."""

from __future__ import annotations

import re

import pytest
from twisted.internet.defer import Deferred
from twisted.web.http import Request

from tests.http.server_harness import Client, LoggedFailures, SiteHarness, chunked, get, post, reply
from twisted_vllm.errors import NotFound
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.server.request import GatewayRequest


def do_nothing(request: GatewayRequest) -> None:
    """Answer later."""


def waiting_house() -> tuple[SiteHarness, Client]:
    harness = SiteHarness()
    harness.streaming.behaviour = do_nothing
    return harness, harness.connect()


def request_id(client: Client, at: int = 0) -> bytes:
    found = client.answers()[at].header(b"x-request-id")
    assert found is not None
    return found


# the client goes


def test_a_client_that_goes_stops_the_work_for_it_once() -> None:
    harness, client = waiting_house()
    client.send(get())
    client.leave()
    assert harness.streaming.works[0].cancelled == 1
    assert harness.finished == [request.context for request in harness.streaming.rendered]
    harness.assert_clean()


def test_a_client_that_goes_within_its_answer_stops_the_work_once() -> None:
    harness, client = waiting_house()
    client.send(get())
    (request,) = harness.streaming.rendered
    request.relay_head(ResponseHead(200, b"OK", []))
    request.relay_body(b"half of", False)
    client.leave()
    assert harness.streaming.works[0].cancelled == 1
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_a_client_that_goes_within_its_body_stops_the_work_once() -> None:
    harness, client = waiting_house()
    client.send(chunked(b"/vllm/a", b"one")[:-5])
    client.leave()
    assert harness.streaming.works[0].cancelled == 1
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_a_client_that_goes_after_its_answer_stops_nothing() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get())
    client.leave()
    assert harness.streaming.works[0].cancelled == 0
    assert len(harness.finished) == 1


def test_an_answer_to_a_client_that_has_gone_goes_nowhere() -> None:
    harness, client = waiting_house()
    client.send(get())
    (request,) = harness.streaming.rendered
    client.leave()
    reply(request)
    request.flush()
    request.resume_body()
    request.pause_body()
    request.answer(NotFound("Too late."))
    assert client.transport.value() == b""
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_requests_that_were_not_begun_are_not_counted_when_the_client_goes() -> None:
    harness, client = waiting_house()
    client.send(get() + get(b"/vllm/b") + b"GET /vllm/c")
    client.leave()
    assert len(harness.streaming.rendered) == 1
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_a_client_that_goes_while_its_answer_is_awaited_tells_an_ordinary_resource() -> None:
    harness = SiteHarness()
    gone: list[Deferred[None]] = []

    def wait(request: Request) -> int:
        gone.append(request.notifyFinish())
        return 1

    harness.ordinary.behaviour = wait
    client = harness.connect()
    client.send(get(b"/other/a"))
    failures: list[object] = []
    gone[0].addErrback(failures.append)
    client.leave()
    assert len(failures) == 1
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_a_resource_learns_when_its_answer_was_written() -> None:
    harness, client = waiting_house()
    client.send(get())
    (request,) = harness.streaming.rendered
    written: list[object] = []
    request.notifyFinish().addCallback(written.append)
    reply(request)
    assert written == [None]


def test_an_aborted_answer_cuts_the_connection_and_is_over_once() -> None:
    harness, client = waiting_house()
    client.send(get())
    (request,) = harness.streaming.rendered
    request.relay_head(ResponseHead(200, b"OK", []))
    request.relay_body(b"half of", False)
    request.abort()
    client.settle()
    assert client.gone
    assert client.transport.aborted
    assert not client.transport.value().endswith(b"0\r\n\r\n")
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_an_answer_is_over_once_though_more_is_written_to_it() -> None:
    harness, client = waiting_house()
    client.send(get())
    (request,) = harness.streaming.rendered
    reply(request)
    request.relay_body(b"more", True)
    request.finish()
    assert client.answer().body == b"ok"
    assert len(harness.finished) == 1


def test_a_work_that_raises_when_it_is_stopped_leaves_nothing_behind(logged_failures: LoggedFailures) -> None:
    harness, client = waiting_house()

    class Broken:
        def cancel(self) -> None:
            raise ZeroDivisionError

    def begin(request: GatewayRequest) -> None:
        request.work = Broken()

    harness.streaming.behaviour = begin
    client.send(get())
    try:
        client.leave()
    except ZeroDivisionError:
        """Twisted logs it."""
    logged_failures.flush(ZeroDivisionError)
    assert len(harness.finished) == 1
    harness.assert_clean()


# ids


def test_a_request_gets_an_id_that_the_answer_names() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get() + get(b"/other/a") + get(b"/vllm/b"))
    ids = [request_id(client, at) for at in range(3)]
    assert all(re.fullmatch(rb"[0-9a-f]{32}", found) for found in ids)
    assert len(set(ids)) == 3
    assert ids == [context.request_id for context in harness.finished]


@pytest.mark.parametrize("target", [b"/vllm/a", b"/other/a"])
def test_a_clients_own_id_is_kept(target: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(target, b"X-Request-ID: cmpl-123/a~b"))
    assert request_id(client) == b"cmpl-123/a~b"
    client.send(get(target, b"X-Request-ID: cmpl-123/a~b"))
    assert request_id(client, 1) == b"cmpl-123/a~b", "it is free again"


@pytest.mark.parametrize("given", [b"", b"a b", b"a" * 129, b"caf\xc3\xa9", b"a\tb"])
def test_an_id_that_could_not_stand_in_a_header_or_a_log_is_replaced(given: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/a", b"X-Request-Id: " + given))
    assert re.fullmatch(rb"[0-9a-f]{32}", request_id(client))


def test_an_id_that_is_made_begins_with_the_second_so_that_the_ledger_s_index_grows_at_its_end() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/a"))
    assert re.fullmatch(b"%08x[0-9a-f]{24}" % int(harness.clock.seconds()), request_id(client))


def test_an_id_that_another_live_request_has_is_replaced() -> None:
    harness, client = waiting_house()
    other = harness.connect()
    client.send(get(b"/vllm/a", b"X-Request-Id: same"))
    other.send(get(b"/vllm/b", b"X-Request-Id: same"))
    first, second = harness.streaming.rendered
    reply(second)
    reply(first)
    assert request_id(client) == b"same"
    assert request_id(other) != b"same"
    client.leave()
    other.leave()
    harness.assert_clean()


def test_an_id_that_the_server_returned_is_not_doubled() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: reply(request, headers=[(b"X-Request-Id", b"the servers")])
    client = harness.connect()
    client.send(get())
    assert request_id(client) == b"the servers"


def test_a_malformed_request_has_an_id_too() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(b"nonsense\r\n\r\n")
    assert request_id(client) == harness.finished[0].request_id
    client.settle()
    harness.pass_time(10)
    client.settle()
    harness.assert_clean()


def test_a_finished_request_has_its_response_status() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(post(b"/vllm/a", b"body"))
    harness.streaming.behaviour = lambda request: request.answer(NotFound("There is none."))
    client.send(get(b"/vllm/b"))
    first, second = harness.finished
    assert (first.status, first.error_code, first.bytes_out, first.bytes_in) == (200, "", 12, 4)
    assert (second.status, second.error_code, second.first_byte) == (404, "not_found", harness.clock.seconds())


# drain


def test_a_drain_closes_idle_connections_at_once() -> None:
    harness = SiteHarness()
    silent, used = harness.connect(), harness.connect()
    harness.pass_time(2)
    used.send(get())
    drained: list[None] = []
    harness.site.drain().addCallback(drained.append)
    assert not drained
    silent.settle()
    used.settle()
    assert silent.gone and used.gone
    assert drained == [None]
    harness.assert_clean()


def test_a_drain_serves_the_first_request_of_a_new_connection() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = reply
    fresh, silent = harness.connect(), harness.connect()
    drained: list[None] = []
    harness.site.drain().addCallback(drained.append)
    fresh.send(get())
    assert [request.is_awaited for request in harness.streaming.rendered] == [True]
    fresh.settle()
    assert fresh.gone
    assert not drained
    # what says nothing does not hold it up
    harness.pass_time(2)
    silent.settle()
    assert silent.gone
    assert drained == [None]
    harness.assert_clean()


def test_a_drain_without_connections_is_over_at_once() -> None:
    drained: list[None] = []
    SiteHarness().site.drain().addCallback(drained.append)
    assert drained == [None]


def test_a_drain_waits_for_requests_in_flight_and_accepts_no_more() -> None:
    harness, client = waiting_house()
    client.send(get())
    drained: list[None] = []
    harness.site.drain().addCallback(drained.append)
    client.send(get(b"/vllm/b"))
    assert not drained
    reply(harness.streaming.rendered[0])
    client.settle()
    assert client.answers()[0].closes
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/a"]
    harness.pass_time(10)
    client.settle()
    assert client.gone
    assert drained == [None]
    harness.assert_clean()


def test_a_request_is_recorded_before_the_drain_is_over() -> None:
    harness, client = waiting_house()
    client.send(get())
    recorded: list[int] = []
    harness.site.drain().addCallback(lambda _: recorded.append(len(harness.finished)))
    client.leave()
    assert recorded == [1]


def test_an_answer_that_began_before_the_drain_ends_the_connection_though_it_said_otherwise() -> None:
    harness, client = waiting_house()
    client.send(get())
    (request,) = harness.streaming.rendered
    request.relay_head(ResponseHead(200, b"OK", []))
    request.relay_body(b"half", False)
    harness.site.drain()
    request.relay_body(b" whole", True)
    client.settle()
    assert client.answer().body == b"half whole"
    assert client.gone


def test_a_connection_that_is_taken_during_a_drain_does_not_hold_it_up() -> None:
    harness, client = waiting_house()
    client.send(get())
    drained: list[None] = []
    harness.site.drain().addCallback(drained.append)
    late = harness.connect()
    reply(harness.streaming.rendered[0])
    client.settle()
    harness.pass_time(2)
    late.settle()
    assert late.gone
    assert drained == [None]


def test_a_discarded_body_does_not_hold_up_a_drain() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = reply
    client = harness.connect()
    client.send(post(b"/vllm/a", b"1234")[:-4])
    drained: list[None] = []
    harness.site.drain().addCallback(drained.append)
    client.settle()
    harness.pass_time(3)
    client.settle()
    assert drained == [None]


def test_remaining_connections_are_aborted_and_counted() -> None:
    harness, client = waiting_house()
    client.send(get())
    drained: list[None] = []
    harness.site.drain().addCallback(drained.append)
    assert harness.site.abort() == 1
    client.settle()
    assert client.transport.aborted
    assert drained == [None]
    assert harness.streaming.works[0].cancelled == 1
    harness.assert_clean()
