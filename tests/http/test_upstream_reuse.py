"""Which connections are reused, and the handling of those that are not."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.http.upstream_harness import OK, Lab, Upload, make_server, second_attempt
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import UpstreamTimeout
from twisted_vllm.http.client.pool import KEEP, KEEP_COUNT
from twisted_vllm.http.client.retries import StaleRequest
from twisted_vllm.http.net.deadlines import INTERVAL


def test_a_connection_carries_one_exchange_after_another() -> None:
    lab = Lab()
    asked, end = lab.asked()
    for _ in range(5):
        end.send(OK)
        assert asked.body == b"ok"
        asked = lab.ask()
    assert lab.attempts == 1
    assert end.received.count(b"GET /v1/models") == 6


def test_two_requests_at_once_have_two_connections() -> None:
    lab = Lab()
    one, first = lab.asked()
    two, second = lab.asked()
    second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo")
    first.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")
    assert (one.body, two.body) == (b"one", b"two")


def test_the_connection_used_last_is_used_next() -> None:
    lab = Lab()
    _, first = lab.asked()
    _, second = lab.asked()
    second.send(OK)
    first.send(OK)
    second.clear_writes()
    first.clear_writes()
    lab.ask()
    assert first.received
    assert not second.received


def test_a_connection_to_one_server_serves_no_other() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    lab.ask(server=make_server(host="192.0.2.8"))
    assert [client[0] for client in lab.clock.tcpClients] == ["192.0.2.7", "192.0.2.8"]


@pytest.mark.parametrize("changes", [{"api_key": Secret("k")}, {"timeouts": Timeouts(idle=1)}, {"base_path": b"/a"}])
def test_a_connection_is_not_shared_by_two_servers_of_one_address(changes: dict[str, Any]) -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    lab.ask(server=attrs.evolve(make_server(), **changes))
    assert lab.attempts == 2


def test_the_connection_is_free_before_the_response_is_delivered() -> None:
    """So that a new request from a callback needs no second connection."""
    lab = Lab()
    asked, end = lab.asked(read=False)
    asked.result.addCallback(lambda _: lab.ask())
    end.clear_writes()
    end.send(OK)
    assert lab.attempts == 1
    assert end.received.startswith(b"GET ")


def test_a_request_from_within_the_last_piece_is_answered_too() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    again = []
    asked.read(lambda _: again.append(lab.ask()))
    end.send(b"ok")
    assert asked.body == b"ok"
    assert lab.attempts == 1
    end.send(OK)
    assert again[0].body == b"ok"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nconnection: Close\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_connection_that_the_server_will_close_is_not_used_again(head: bytes, method: bytes) -> None:
    lab = Lab()
    asked, end = lab.asked(method)
    end.send(head if method == b"HEAD" else head + b"ok")
    assert asked.response.complete
    assert not end.is_open
    lab.ask()
    assert lab.attempts == 2


def test_a_server_of_http_1_0_that_keeps_its_connection_is_taken_at_its_word() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
    lab.ask()
    assert lab.attempts == 1


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(OK, id="a second response"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", id="another second response"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="an interim response"),
        pytest.param(b"extra", id="garbage"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Half: ", id="half a head"),
        pytest.param(b"H", id="one byte"),
    ],
)
@pytest.mark.parametrize(
    ("method", "raw", "body"),
    [
        (b"GET", OK, b"ok"),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["length", "chunked", "204"],
)
def test_more_than_the_response_in_its_segment_poisons_the_connection(
    method: bytes, raw: bytes, body: bytes, extra: bytes
) -> None:
    lab = Lab()
    asked, end = lab.asked(method)
    end.send(raw + extra)
    assert asked.body == body
    assert end.is_cut
    again = lab.ask()
    assert lab.attempts == 2
    lab.accept().send(OK)
    assert again.body == b"ok"


def test_a_body_after_the_response_to_head_poisons_the_connection() -> None:
    lab = Lab()
    asked, end = lab.asked(b"HEAD")
    end.send(OK)
    assert asked.body == b""
    assert end.is_cut


def test_a_second_response_in_the_segment_leaves_no_trace_in_the_first() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(OK + b"HTTP/1.1 404 Not Found\r\nX-Second: 1\r\nContent-Length: 4\r\n\r\nlost")
    assert asked.response.code == 200
    assert asked.response.phrase == b"OK"
    assert asked.response.raw_headers == [(b"Content-Length", b"2")]
    assert asked.body == b"ok"


def test_data_on_an_idle_connection_cuts_it() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    end.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    assert end.is_cut
    lab.assert_nothing_left()


def test_a_connection_that_was_cut_for_data_while_idle_carries_no_request() -> None:
    """Sent on it, the request would reach the server, and then be sent again."""
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    end.clear_writes()
    end.send(b"surprise")
    asked = lab.ask(b"POST", body=b"held")
    assert end.received == b""
    assert lab.attempts == 2
    lab.accept().send(OK)
    lab.turn()
    assert asked.body == b"ok"


def test_an_idle_connection_that_the_server_closes_is_removed() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    end.close()
    lab.assert_nothing_left()
    lab.ask()
    assert lab.attempts == 2


def test_an_idle_connection_is_closed_before_vllm_would_close_it() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    is_open = []
    for seconds in (KEEP - INTERVAL, 3 * INTERVAL):
        lab.advance(seconds)
        is_open.append(end.is_open)
    assert is_open == [True, False]
    assert not end.is_cut, "an idle connection is closed in good order"
    lab.assert_nothing_left()


def test_a_connection_that_was_idle_for_long_carries_no_request_though_it_is_still_open() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    end.clear_writes()
    lab.advance(KEEP)
    lab.ask()
    assert lab.attempts == 2
    assert end.received == b""


def test_each_use_makes_a_connection_young_again() -> None:
    lab = Lab()
    asked, end = lab.asked()
    for _ in range(4):
        end.send(OK)
        assert asked.body == b"ok"
        lab.advance(KEEP - 2 * INTERVAL)
        asked = lab.ask()
    assert lab.attempts == 1


def test_a_connection_in_use_does_not_count_as_idle() -> None:
    lab = Lab()
    asked, end = lab.reused()
    lab.advance(10 * KEEP)
    assert end.is_open
    end.send(OK)
    assert asked.body == b"ok"


def test_surplus_connections_are_closed_the_oldest_first() -> None:
    lab = Lab()
    ends = [lab.asked()[1] for _ in range(KEEP_COUNT + 2)]
    for end in ends:
        end.send(OK)
    assert len(lab.agent.pool) == KEEP_COUNT
    assert [end.is_open for end in ends] == [False, False] + [True] * KEEP_COUNT
    lab.turn()
    assert len(lab.agent.connections) == KEEP_COUNT


def test_a_connection_is_used_again_after_an_upload_that_was_whole() -> None:
    lab = Lab()
    upload = Upload(2)
    asked, end = lab.asked(b"POST", upload)
    upload.write(b"hi")
    upload.finish()
    end.send(OK)
    assert asked.body == b"ok"
    lab.ask()
    assert lab.attempts == 1


def test_a_connection_whose_reader_paused_reads_again_for_the_next_exchange() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
    reader = asked.read()
    reader.transport.pauseProducing()
    end.send(b"ok")  # what was on its way when the pause began
    assert asked.body == b"okok"
    assert not end.is_paused
    again = lab.ask()
    assert lab.attempts == 1
    end.send(OK)
    assert again.body == b"ok"


def test_a_reader_that_pauses_at_the_last_piece_does_not_pause_the_next_exchange() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    asked.read(lambda reader: reader.transport.pauseProducing())
    end.send(b"ok")
    assert asked.body == b"ok"
    assert not end.is_paused


def test_an_idle_connection_whose_last_reader_paused_is_closed_in_time() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    asked.read(lambda reader: reader.transport.pauseProducing())
    end.send(b"ok")
    lab.advance(KEEP + 3 * INTERVAL)
    lab.assert_nothing_left()


@pytest.mark.parametrize("way", ["stopProducing", "pauseProducing"])
def test_a_reader_that_has_its_response_cannot_touch_the_next_one(way: str) -> None:
    lab = Lab()
    first, end = lab.asked()
    end.send(OK)
    assert first.reader is not None
    second = lab.ask()
    getattr(first.reader.transport, way)()
    assert end.is_open
    assert not end.is_paused
    end.send(OK)
    assert second.body == b"ok"


def test_cutting_a_response_that_ended_does_not_touch_the_next_one() -> None:
    lab = Lab()
    first, end = lab.asked()
    end.send(OK)
    second = lab.ask()
    first.response.cut()
    first.result.cancel()
    end.send(OK)
    assert second.body == b"ok"


# the end of the agent


def test_closing_the_agent_aborts_idle_and_active_connections() -> None:
    lab = Lab()
    waiting, _ = lab.asked()
    streaming, middle = lab.asked()
    middle.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell")
    _, idle = lab.asked()
    idle.send(OK)
    lab.agent.close()
    assert all(end.is_cut for end in lab.ends)
    lab.assert_nothing_left()
    assert waiting.error is not None
    assert streaming.end is not None
    assert streaming.reader is not None
    assert not streaming.reader.is_whole


def test_closing_the_agent_sends_nothing_again() -> None:
    lab = Lab()
    asked, _ = lab.reused(body=b"held", again=second_attempt)
    lab.agent.close()
    lab.turn()
    assert lab.attempts == 1
    assert asked.error is not None


def test_closing_the_agent_gives_up_connecting() -> None:
    lab = Lab()
    asked = lab.ask()
    lab.agent.close()
    assert lab.clock.connectors[0].stoppedConnecting
    assert asked.error is not None
    assert not isinstance(asked.error, UpstreamTimeout)


# what the server sent too much


def test_a_connection_is_not_reused_in_the_turn_in_which_its_answer_ended() -> None:
    lab = Lab()
    asked, end = lab.asked()
    lab.coalescer.hold()
    end.send(OK)
    assert asked.body == b"ok"
    end.clear_writes()
    lab.ask()
    lab.coalescer.release()
    assert end.received == b""
    assert lab.attempts == 2
    lab.coalescer.hold()
    lab.ask()
    lab.coalescer.release()
    assert end.received.startswith(b"GET ")
    assert lab.attempts == 2


@pytest.mark.parametrize("body", [None, b"held", "streamed"])
def test_a_request_that_waits_to_be_sent_does_not_get_the_surplus_answer_before_it(body: Any) -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    end.clear_writes()
    upload = Upload(2) if body == "streamed" else None
    lab.coalescer.hold()
    asked = lab.ask(b"POST", body=upload or body)
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra")
    lab.coalescer.release()
    lab.turn()
    assert end.received == b""
    assert asked.is_pending
    fresh = lab.accept()
    assert fresh.received.startswith(b"POST ")
    if upload is not None:
        upload.write(b"hi")
        upload.finish()
    fresh.send(OK)
    assert asked.body == b"ok"
    assert lab.agent.stale_requests == {StaleRequest.MOVED: 1}


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("body", [None, b"held", "streamed"])
def test_a_request_whose_connection_closes_before_it_was_sent_goes_to_another(body: Any, leave: str) -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    end.clear_writes()
    upload = Upload(2) if body == "streamed" else None
    times: list[float] = []
    lab.coalescer.hold()
    asked = lab.ask(b"POST", body=upload or body, on_sent=times.append)
    getattr(end, leave)()
    lab.coalescer.release()
    assert end.received == b""
    assert times == []
    fresh = lab.accept()
    assert len(times) == 1
    if upload is not None:
        assert upload.started == 1
        upload.write(b"hi")
        upload.finish()
    fresh.send(OK)
    assert asked.body == b"ok"
    assert lab.agent.stale_requests == {StaleRequest.MOVED: 1}


def test_a_request_that_is_given_up_before_it_was_sent_is_never_sent() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK)
    end.clear_writes()
    lab.coalescer.hold()
    lab.ask(b"POST", body=b"held").result.cancel()
    lab.coalescer.release()
    assert end.received == b""
    assert end.is_cut
    assert lab.attempts == 1
    lab.assert_nothing_left()


def test_a_fault_while_one_request_is_sent_keeps_no_other_from_being_sent() -> None:
    def broken(_: float) -> None:
        raise ZeroDivisionError

    lab = Lab()
    lab.coalescer.hold()
    bad, bad_end = lab.ask(on_sent=broken), lab.accept()
    good, good_end = lab.asked()
    lab.coalescer.release()
    assert isinstance(bad.error, ZeroDivisionError)
    assert bad_end.is_cut
    good_end.send(OK)
    assert good.body == b"ok"


@pytest.mark.parametrize("where", ["while idle", "in the same segment"])
def test_no_connection_of_a_server_that_answered_twice_is_reused_for_a_minute(where: str) -> None:
    lab = Lab()
    ends = [lab.asked()[1] for _ in range(3)]
    for end in ends[:2]:
        end.send(OK)
    if where == "while idle":
        ends[2].send(OK)
        ends[2].send(OK)
    else:
        ends[2].send(OK + OK)
    assert ends[2].is_cut
    assert [end.is_open for end in ends] == [False] * 3, "others may have a surplus answer on its way"
    lab.turn()
    for _ in range(3):
        lab.advance(19)
        asked, end = lab.asked()
        end.send(OK)
        assert asked.body == b"ok"
        assert not end.is_open
    lab.advance(3)
    asked, end = lab.asked()
    end.send(OK)
    assert end.is_open
    lab.ask()
    assert lab.attempts == 7


def test_a_server_that_says_goodbye_with_408_is_trusted() -> None:
    lab = Lab()
    _, kept = lab.asked()
    _, end = lab.asked()
    kept.send(OK)
    end.send(OK)
    end.send(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert end.is_cut
    lab.ask()
    assert lab.attempts == 2
    assert kept.received.count(b"GET ") == 2


def test_another_server_is_trusted_as_before() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(OK + OK)
    other = make_server(host="192.0.2.8")
    lab.ask(server=other)
    lab.accept().send(OK)
    lab.ask(server=other)
    assert lab.attempts == 2


def test_idle_connections_to_a_server_that_is_gone_are_closed_and_others_stay() -> None:
    lab = Lab()
    gone, stays = make_server(host="192.0.2.8"), make_server()
    lab.ask(server=gone)
    idle = lab.accept()
    running = lab.ask(server=gone)
    busy = lab.accept()
    lab.ask(server=stays)
    other = lab.accept()
    idle.send(OK)
    other.send(OK)
    lab.agent.reconfigure([stays], None, {})
    assert (idle.is_open, busy.is_open, other.is_open) == (False, True, True)
    busy.send(OK)
    assert running.body == b"ok"
    other.clear_writes()
    lab.ask(server=stays)
    assert other.received
