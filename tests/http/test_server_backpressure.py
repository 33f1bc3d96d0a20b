"""Who has to wait when somebody is slow."""

from __future__ import annotations

from collections.abc import Callable

from tests.http.server_harness import LONG_ENOUGH, House, get, post, reply
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.server.request import GatewayRequest


class Producer:
    """Produces an answer, and keeps what it was told."""

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


def streaming_house() -> tuple[House, Producer]:
    house = House()
    producer = Producer()
    house.streaming.behaviour = begin(producer)
    return house, producer


def test_a_resource_that_does_not_want_more_of_the_body_leaves_it_in_the_kernel() -> None:
    house = House()
    pieces: list[bytes] = []

    def take_little(request: GatewayRequest) -> None:
        def sink(data: bytes, last: bool) -> None:
            pieces.append(data)
            request.pause_body()
            if last:
                reply(request)

        request.stream_body(sink)

    house.streaming.behaviour = take_little
    client = house.connect()
    data = post(b"/vllm/a", b"abc")
    client.send(data[:-3], b"a", b"b", b"c")
    assert (pieces, client.unread) == ([b"a"], 2)
    request = house.streaming.rendered[0]
    request.resume_body()
    client.settle()
    assert (pieces, client.unread) == ([b"a", b"b"], 1)
    request.resume_body()
    client.settle()
    assert client.answer().status == 200
    client.send(get(b"/vllm/b"))
    assert client.transport.producerState == "producing"


def test_a_body_that_was_paused_does_not_stop_the_connection_after_its_early_answer() -> None:
    house = House()
    house.streaming.behaviour = lambda request: request.pause_body()
    client = house.connect()
    data = post(b"/vllm/a", b"abc")
    client.send(data[:-3])
    assert client.transport.producerState == "paused"
    reply(house.streaming.rendered[0])
    client.send(b"abc" + get(b"/vllm/b"))
    assert client.unread == 0
    assert [request.uri for request in house.streaming.rendered] == [b"/vllm/a", b"/vllm/b"]


def test_a_body_that_was_paused_does_not_stop_a_lingering_connection() -> None:
    house = House()
    house.streaming.behaviour = lambda request: request.pause_body()
    client = house.connect()
    client.send(get(b"/vllm/a", b"Content-Length: 1000000", method=b"POST"))
    reply(house.streaming.rendered[0])
    client.send(bytes(100_000))
    assert client.unread == 0


def test_who_produces_the_answer_is_stopped_while_the_client_does_not_read() -> None:
    house, producer = streaming_house()
    client = house.connect()
    client.send(get())
    assert producer.told == []
    client.transport.producer.pauseProducing()
    client.transport.producer.resumeProducing()
    assert producer.told == ["pause", "resume"]


def test_who_begins_to_produce_for_a_client_that_does_not_read_is_stopped_at_once() -> None:
    house = House()
    producer = Producer()
    house.streaming.behaviour = lambda request: None
    client = house.connect()
    client.send(get())
    client.channel.pauseProducing()
    begin(producer)(house.streaming.rendered[0])
    assert producer.told == ["pause"]
    client.channel.resumeProducing()
    assert producer.told == ["pause", "resume"]


def test_a_client_that_does_not_read_its_answers_gets_to_send_no_more_requests() -> None:
    house = House()
    client = house.connect()
    client.send(get(b"/vllm/1"))
    client.transport.producer.pauseProducing()
    client.send(get(b"/vllm/2"))
    assert client.unread > 0
    client.transport.producer.resumeProducing()
    client.settle()
    assert len(client.answers()) == 2


def test_a_client_that_stops_reading_within_an_answer_gets_to_send_no_more_requests() -> None:
    house = House()
    house.streaming.behaviour = lambda request: None
    client = house.connect()
    client.send(get(b"/vllm/1"))
    client.transport.producer.pauseProducing()
    reply(house.streaming.rendered[0], bytes(100_000))
    client.send(get(b"/vllm/2"))
    assert client.unread > 0
    client.transport.producer.resumeProducing()
    client.settle()
    assert len(house.streaming.rendered) == 2


def test_pipelined_requests_are_not_answered_while_the_client_does_not_read() -> None:
    # else one segment of small requests makes the gateway hold thousands of large answers
    house = House()
    house.streaming.behaviour = lambda request: None
    client = house.connect()
    client.send(get(b"/vllm/1") + get(b"/vllm/2") + get(b"/vllm/3"))
    client.transport.producer.pauseProducing()
    reply(house.streaming.rendered[0], bytes(100_000))
    assert len(house.streaming.rendered) == 1
    client.transport.producer.resumeProducing()
    assert len(house.streaming.rendered) == 2


def test_a_producer_is_let_go_when_its_answer_ends() -> None:
    house, producer = streaming_house()
    client = house.connect()
    client.send(get())
    (request,) = house.streaming.rendered
    request.unregisterProducer()
    request.relay_body(b"", True)
    house.streaming.behaviour = reply
    client.send(get(b"/vllm/b"))
    client.transport.producer.pauseProducing()
    assert producer.told == []


def test_a_producer_that_was_not_let_go_is_let_go_with_the_answer() -> None:
    house, producer = streaming_house()
    client = house.connect()
    client.send(get())
    house.streaming.rendered[0].relay_body(b"", True)
    house.streaming.behaviour = begin(producer)
    client.send(get(b"/vllm/b"))
    assert len(client.transport.value().split(b"HTTP/1.1 200")) == 3


def test_a_connection_on_which_the_client_reads_nothing_is_closed_in_the_end() -> None:
    house = House()
    client = house.connect()
    client.send(get(b"/vllm/1"))
    client.transport.producer.pauseProducing()
    house.pass_time(LONG_ENOUGH)
    assert client.transport.closing
