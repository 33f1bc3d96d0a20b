"""Backpressure between slow clients and slow servers."""

from __future__ import annotations

from collections.abc import Callable

from tests.http.server_harness import LONG_ENOUGH, SiteHarness, get, post, reply
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.server.request import GatewayRequest


class Producer:
    """Produces a response, and records the calls."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


def begin(producer: Producer) -> Callable[[GatewayRequest], None]:
    def behaviour(request: GatewayRequest) -> None:
        request.relay_head(ResponseHead(200, b"OK", []))
        request.registerProducer(producer, True)
        request.relay_body(b"first", False)

    return behaviour


def streaming_house() -> tuple[SiteHarness, Producer]:
    harness = SiteHarness()
    producer = Producer()
    harness.streaming.behaviour = begin(producer)
    return harness, producer


def test_a_resource_that_does_not_want_more_of_the_body_leaves_it_in_the_kernel() -> None:
    harness = SiteHarness()
    pieces: list[bytes] = []

    def take_little(request: GatewayRequest) -> None:
        def sink(data: bytes, last: bool) -> None:
            pieces.append(data)
            request.pause_body()
            if last:
                reply(request)

        request.stream_body(sink)

    harness.streaming.behaviour = take_little
    client = harness.connect()
    data = post(b"/vllm/a", b"abc")
    client.send(data[:-3], b"a", b"b", b"c")
    assert (pieces, client.unread) == ([b"a"], 2)
    request = harness.streaming.rendered[0]
    request.resume_body()
    client.settle()
    assert (pieces, client.unread) == ([b"a", b"b"], 1)
    request.resume_body()
    client.settle()
    assert client.answer().status == 200
    client.send(get(b"/vllm/b"))
    assert client.transport.producerState == "producing"


def test_a_body_that_was_paused_does_not_stop_the_connection_after_its_early_answer() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: request.pause_body()
    client = harness.connect()
    data = post(b"/vllm/a", b"abc")
    client.send(data[:-3])
    assert client.transport.producerState == "paused"
    reply(harness.streaming.rendered[0])
    client.send(b"abc" + get(b"/vllm/b"))
    assert client.unread == 0
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/a", b"/vllm/b"]


def test_a_body_that_was_paused_does_not_stop_a_lingering_connection() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: request.pause_body()
    client = harness.connect()
    client.send(get(b"/vllm/a", b"Content-Length: 1000000", method=b"POST"))
    reply(harness.streaming.rendered[0])
    client.send(bytes(100_000))
    assert client.unread == 0


def test_the_producer_is_paused_while_the_client_does_not_read() -> None:
    harness, producer = streaming_house()
    client = harness.connect()
    client.send(get())
    assert producer.told == []
    client.transport.producer.pauseProducing()
    client.transport.producer.resumeProducing()
    assert producer.told == ["pause", "resume"]


def test_a_new_producer_is_paused_at_once_if_the_client_does_not_read() -> None:
    harness = SiteHarness()
    producer = Producer()
    harness.streaming.behaviour = lambda request: None
    client = harness.connect()
    client.send(get())
    client.channel.pauseProducing()
    begin(producer)(harness.streaming.rendered[0])
    assert producer.told == ["pause"]
    client.channel.resumeProducing()
    assert producer.told == ["pause", "resume"]


def test_a_client_that_does_not_read_its_answers_gets_to_send_no_more_requests() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/1"))
    client.transport.producer.pauseProducing()
    client.send(get(b"/vllm/2"))
    assert client.unread > 0
    client.transport.producer.resumeProducing()
    client.settle()
    assert len(client.answers()) == 2


def test_a_client_that_stops_reading_within_an_answer_gets_to_send_no_more_requests() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: None
    client = harness.connect()
    client.send(get(b"/vllm/1"))
    client.transport.producer.pauseProducing()
    reply(harness.streaming.rendered[0], bytes(100_000))
    client.send(get(b"/vllm/2"))
    assert client.unread > 0
    client.transport.producer.resumeProducing()
    client.settle()
    assert len(harness.streaming.rendered) == 2


def test_pipelined_requests_are_not_answered_while_the_client_does_not_read() -> None:
    # else one segment of small requests makes the gateway hold thousands of large answers
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: None
    client = harness.connect()
    client.send(get(b"/vllm/1") + get(b"/vllm/2") + get(b"/vllm/3"))
    client.transport.producer.pauseProducing()
    reply(harness.streaming.rendered[0], bytes(100_000))
    assert len(harness.streaming.rendered) == 1
    client.transport.producer.resumeProducing()
    assert len(harness.streaming.rendered) == 2


def test_a_producer_is_unregistered_when_its_response_ends() -> None:
    harness, producer = streaming_house()
    client = harness.connect()
    client.send(get())
    (request,) = harness.streaming.rendered
    request.unregisterProducer()
    request.relay_body(b"", True)
    harness.streaming.behaviour = reply
    client.send(get(b"/vllm/b"))
    client.transport.producer.pauseProducing()
    assert producer.told == []


def test_a_registered_producer_is_unregistered_with_the_response() -> None:
    harness, producer = streaming_house()
    client = harness.connect()
    client.send(get())
    harness.streaming.rendered[0].relay_body(b"", True)
    harness.streaming.behaviour = begin(producer)
    client.send(get(b"/vllm/b"))
    assert len(client.transport.value().split(b"HTTP/1.1 200")) == 3


def test_a_connection_on_which_the_client_reads_nothing_is_closed_in_the_end() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/1"))
    client.transport.producer.pauseProducing()
    harness.pass_time(LONG_ENOUGH)
    assert client.transport.closing
