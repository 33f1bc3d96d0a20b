"""Pipelining: several requests on one connection are answered in order."""

from __future__ import annotations

import pytest

from tests.http.server_harness import SiteHarness, chunked, echo, get, post, reply
from twisted_vllm.http.server.connection import HELD_LIMIT
from twisted_vllm.http.server.pipelines import PER_TURN
from twisted_vllm.http.server.request import GatewayRequest


def do_nothing(request: GatewayRequest) -> None:
    """Answer later."""


def test_a_connection_takes_one_request_after_the_other() -> None:
    harness = SiteHarness()
    client = harness.connect()
    for at in range(3):
        client.send(post(b"/vllm/%d" % at, b"body"))
        assert [answer.body for answer in client.answers()] == [b"/vllm/%d body" % done for done in range(at + 1)]
    assert not client.ended
    assert client.channel.is_idle()
    client.leave()
    assert len(harness.finished) == 3
    harness.assert_clean()


def test_pipelined_requests_are_answered_in_order() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/1") + post(b"/other/2", b"two") + chunked(b"/vllm/3", b"th", b"ree") + get(b"/other/4"))
    bodies = [answer.body for answer in client.answers()]
    assert bodies == [b"/vllm/1 ", b"/other/2 two", b"/vllm/3 three", b"/other/4 "]


def test_a_request_is_rendered_only_when_the_one_before_it_was_answered() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = do_nothing
    client = harness.connect()
    client.send(get(b"/vllm/1") + get(b"/other/2") + get(b"/vllm/3"))
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/1"]
    assert harness.ordinary.seen == []
    assert client.answers() == []
    reply(harness.streaming.rendered[0], b"first")
    assert [answer.body for answer in client.answers()] == [b"first", b"/other/2 "]
    reply(harness.streaming.rendered[1], b"third")
    assert [answer.body for answer in client.answers()] == [b"first", b"/other/2 ", b"third"]
    client.leave()
    harness.assert_clean()


def test_no_turn_answers_more_than_thirty_two_pipelined_requests_of_all_connections_together() -> None:
    harness = SiteHarness()
    clients = [harness.connect() for _ in range(20)]
    for client in clients:
        # as the reactor delivers what all of them sent, before its next turn
        client.channel.dataReceived(get(b"/vllm/a") * 500)
    # the first request of each connection is answered at once
    assert len(harness.streaming.rendered) == len(clients) + PER_TURN
    for client in clients:
        client.settle()
        assert [answer.body for answer in client.answers()] == [b"/vllm/a "] * 500
        client.leave()
    harness.assert_clean()


def test_a_client_that_leaves_while_it_waits_for_a_turn_gets_none() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.channel.dataReceived(get(b"/vllm/a") * 500)
    answered = len(harness.streaming.rendered)
    client.leave()
    client.settle()
    assert len(harness.streaming.rendered) == answered
    harness.assert_clean()


def test_a_deep_pipeline_is_answered_without_recursion() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/a") * 3_000)
    assert len(client.answers()) == 3_000


@pytest.mark.parametrize("cut", [1, 20, 45, 60, 70])
def test_a_request_whose_pieces_come_while_another_is_answered_is_read_in_order(cut: int) -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = do_nothing
    client = harness.connect()
    second = post(b"/other/2", b"the second body")
    assert cut < len(second)
    client.send(get(b"/vllm/1") + second[:cut])
    client.send(second[cut:])
    client.send(get(b"/other/3"))
    reply(harness.streaming.rendered[0], b"first")
    client.settle()
    assert [answer.body for answer in client.answers()] == [b"first", b"/other/2 the second body", b"/other/3 "]
    client.leave()
    harness.assert_clean()


def test_what_is_pipelined_beyond_a_limit_stays_in_the_kernel() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = do_nothing
    client = harness.connect()
    client.send(get(b"/vllm/1"))
    client.send(post(b"/other/2", b"a" * HELD_LIMIT), get(b"/other/3"))
    assert client.transport.producerState == "paused"
    assert client.unread > 0
    reply(harness.streaming.rendered[0], b"first")
    client.settle()
    assert client.transport.producerState == "producing"
    assert client.unread == 0
    bodies = [answer.body for answer in client.answers()]
    assert bodies == [b"first", b"/other/2 " + b"a" * HELD_LIMIT, b"/other/3 "]


def test_a_little_that_is_pipelined_is_read() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = do_nothing
    client = harness.connect()
    client.send(get(b"/vllm/1"))
    client.send(get(b"/other/2"))
    assert client.transport.producerState == "producing"
    assert client.unread == 0


def test_a_malformed_request_is_refused_after_the_requests_before_it_were_answered() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = do_nothing
    client = harness.connect()
    client.send(get(b"/vllm/1") + b"nonsense\r\n\r\n" + get(b"/vllm/2"))
    assert client.answers() == []
    reply(harness.streaming.rendered[0], b"first")
    client.settle()
    first, second = client.answers()
    assert (first.status, first.body, first.closes) == (200, b"first", False)
    assert (second.status, second.closes) == (400, True)
    assert client.ended
    harness.pass_time(10)
    client.settle()
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/1"]
    assert len(harness.finished) == 2
    harness.assert_clean()


def test_a_refused_request_between_two_ends_the_connection_at_its_turn() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/1") + get(b"http://elsewhere/vllm/2") + get(b"/vllm/3"))
    assert [answer.status for answer in client.answers()] == [200, 400]
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/1"]


@pytest.mark.parametrize("target", [b"/vllm/1", b"/other/1"])
def test_nothing_is_read_after_a_request_that_ends_the_connection(target: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(target, b"Connection: close") + get(b"/vllm/2"))
    client.send(get(b"/vllm/3"))
    answer = client.answer()
    assert (answer.status, answer.closes) == (200, True)
    assert client.gone
    assert not any(request.uri == b"/vllm/2" for request in harness.streaming.rendered)
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_of_many_small_requests_in_one_segment_few_become_objects_before_their_turn() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = do_nothing
    client = harness.connect()
    data = b"".join(b"GET /vllm/%d HTTP/1.1\r\nHost: h\r\n\r\n" % number for number in range(1_500))
    client.send(data)
    assert len(client.channel.requests) < 200
    harness.streaming.behaviour = echo
    reply(harness.streaming.rendered[0], b"/vllm/0 ")
    client.settle()
    assert [answer.body for answer in client.answers()] == [b"/vllm/%d " % number for number in range(1_500)]
    assert client.channel.is_idle()
    client.leave()
    harness.assert_clean()


def test_bodies_in_tiny_chunks_share_a_turn_and_arrive_whole() -> None:
    harness = SiteHarness()
    body = b"ab" * 15_000
    clients = [harness.connect() for _ in range(5)]
    for client in clients:
        client.channel.dataReceived(
            chunked(b"/other/a", *[body[at : at + 1] for at in range(len(body))]) + get(b"/other/b")
        )
    received = [client.channel.requests[0].body_received for client in clients]
    # the first slice of each is parsed at once
    assert sum(received) <= (len(clients) + PER_TURN) * 4_096 / 6
    assert all(received)
    for client in clients:
        client.settle()
        assert [answer.body for answer in client.answers()] == [b"/other/a " + body, b"/other/b "]
        client.leave()
    harness.assert_clean()


def test_a_wait_for_a_turn_gives_a_body_in_tiny_chunks_no_more_time() -> None:
    harness = SiteHarness()
    clients = [harness.connect() for _ in range(2)]
    body = chunked(b"/other/a", *[b"x"] * 60_000)[:-5]
    for client in clients:
        client.channel.dataReceived(body)
    before = clients[1].channel.deadline
    assert before is not None
    clients[1].settle()
    after = clients[1].channel.deadline
    assert after is not None
    assert after <= before + 60_000 / 500
    for client in clients:
        client.leave()
        client.settle()
    harness.assert_clean()
