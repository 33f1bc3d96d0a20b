"""When tokens go out, and when they do not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from tests.simulator.simulator_harness import Simulator, user
from twisted_vllm.simulator.sender import PacedEvents
from twisted_vllm.simulator.settings import SimulatorSettings

CHAT = "/v1/chat/completions"


class Stream:
    """Paced events, and what they wrote."""

    def __init__(self, count: int, *, first: float = 1.0, interval: float = 0.5) -> None:
        self.clock = Clock()
        self.written: list[bytes] = []
        self.done = 0
        self.pause_after: int | None = None
        events = (b"%d" % number for number in range(count))
        self.producer = PacedEvents(
            self.clock, self._write, b"open", events, first=first, interval=interval, done=self._finish
        )
        self.producer.start()

    def _write(self, data: bytes) -> None:
        self.written.append(data)
        if self.pause_after == len(self.written):
            self.producer.pauseProducing()

    def _finish(self) -> None:
        self.done += 1


def test_it_is_a_push_producer() -> None:
    assert verifyObject(IPushProducer, Stream(1).producer)


def test_each_token_goes_out_when_it_is_due() -> None:
    stream = Stream(3)
    stream.clock.advance(0.9)
    assert stream.written == []
    stream.clock.advance(0.1)
    assert stream.written == [b"open", b"0"]
    stream.clock.advance(0.5)
    assert stream.written[2:] == [b"1"]
    stream.clock.advance(0.5)
    assert stream.written[3:] == [b"2"]
    assert stream.done == 1


def test_a_late_clock_makes_up_for_the_tokens_that_are_due() -> None:
    stream = Stream(10)
    stream.clock.advance(3)
    assert stream.written == [b"open", b"0", b"1", b"2", b"3", b"4"]


def test_without_an_interval_all_goes_out_at_once_and_no_timer_is_made() -> None:
    stream = Stream(1000, first=0, interval=0)
    assert len(stream.written) == 1001
    assert stream.done == 1
    assert stream.clock.getDelayedCalls() == []


def test_a_paused_stream_writes_nothing_and_then_what_became_due() -> None:
    stream = Stream(10)
    stream.clock.advance(1)
    stream.producer.pauseProducing()
    stream.clock.advance(1)
    assert stream.written == [b"open", b"0"]
    assert stream.clock.getDelayedCalls() == []
    stream.producer.resumeProducing()
    assert stream.written[2:] == [b"1", b"2"]


def test_a_pause_from_within_a_write_holds_at_once_even_at_full_speed() -> None:
    stream = Stream(5, first=1, interval=0)
    stream.pause_after = 3
    stream.clock.advance(1)
    assert stream.written == [b"open", b"0", b"1"]
    stream.producer.resumeProducing()
    assert stream.written[3:] == [b"2", b"3", b"4"]
    assert stream.done == 1


def test_a_stopped_stream_stays_stopped() -> None:
    stream = Stream(5)
    stream.clock.advance(1)
    stream.producer.stopProducing()
    stream.producer.resumeProducing()
    stream.clock.advance(10)
    assert stream.written == [b"open", b"0"]
    assert stream.done == 0
    assert stream.clock.getDelayedCalls() == []


@given(
    st.integers(0, 20),
    st.sampled_from([0.0, 0.001, 0.1, 1 / 3]),
    st.lists(st.sampled_from(["pause", "resume"]) | st.floats(0, 1), max_size=30),
)
def test_whatever_pauses_it_every_event_goes_out_once_and_in_order(
    count: int, interval: float, happenings: list[str | float]
) -> None:
    stream = Stream(count, first=interval, interval=interval)
    for happening in happenings:
        if happening == "pause":
            stream.producer.pauseProducing()
        elif happening == "resume":
            stream.producer.resumeProducing()
        elif isinstance(happening, float):
            stream.clock.advance(happening)
    stream.producer.resumeProducing()
    stream.clock.advance(100)
    assert stream.written == ([b"open"] if count else []) + [b"%d" % number for number in range(count)]
    assert stream.done == 1
    assert stream.clock.getDelayedCalls() == []


def test_the_head_of_a_stream_comes_before_its_first_token() -> None:
    simulator = Simulator(SimulatorSettings(first_token=2, token_interval=1))
    pending = simulator.start("POST", CHAT, {"messages": user("hi"), "stream": True, "max_tokens": 3})
    assert pending.got.status == 200
    assert pending.body == b""
    simulator.advance(2)
    assert len(pending.got.events) == 2
    simulator.advance(1)
    assert len(pending.got.events) == 3


def test_a_whole_answer_takes_the_time_of_all_its_tokens() -> None:
    simulator = Simulator(SimulatorSettings(first_token=2, token_interval=1))
    pending = simulator.start("POST", CHAT, {"messages": user("hi"), "max_tokens": 3})
    simulator.advance(3.5)
    assert pending.response is None
    simulator.advance(0.6)
    assert pending.got.status == 200


def test_a_request_counts_as_running_until_its_answer_is_out(simulator: Simulator) -> None:
    pending = simulator.start("POST", CHAT, {"messages": user("one two"), "stream": True, "max_tokens": 3})
    assert simulator.metric("num_requests_running") == 1
    assert simulator.get("/load").json == {"server_load": 1}
    simulator.advance(5)
    assert pending.ended is not None
    assert simulator.metric("num_requests_running") == 0
    assert simulator.metric("prompt_tokens_total") == 2
    assert simulator.metric("generation_tokens_total") == 3
    assert simulator.metric("request_success_total", finished_reason="length") == 1


def test_generation_stops_when_the_client_goes_away(simulator: Simulator) -> None:
    body = {"messages": user("hi"), "stream": True, "max_tokens": 100, "ignore_eos": True}
    pending = simulator.start("POST", CHAT, body)
    simulator.advance(0.05 + 9 * 0.02)
    pending.disconnect()
    simulator.advance(0)
    assert simulator.clock.getDelayedCalls() == []
    assert simulator.metric("num_requests_running") == 0
    assert simulator.metric("generation_tokens_total") == 10
    assert simulator.metric("request_success_total", finished_reason="abort") == 1


def test_a_client_that_does_not_wait_for_a_whole_answer_is_noticed_too(simulator: Simulator) -> None:
    pending = simulator.start("POST", CHAT, {"messages": user("hi")})
    assert simulator.metric("num_requests_running") == 1
    pending.cancel()
    simulator.flush()
    assert simulator.metric("num_requests_running") == 0
    assert simulator.clock.getDelayedCalls() == []
