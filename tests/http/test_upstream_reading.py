"""The body is delivered when the reader requests it, with backpressure."""

from __future__ import annotations

from twisted.web.iweb import IAgent, IResponse
from zope.interface.verify import verifyObject

from tests.http.upstream_harness import OK, Lab, make_server
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.interfaces import IUpstreamAgent

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


def test_the_agent_and_its_responses_have_twisteds_interfaces() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(OK)
    assert verifyObject(IAgent, lab.agent)
    assert verifyObject(IUpstreamAgent, lab.agent)
    assert verifyObject(IResponse, asked.response)
    assert asked.response.version == (b"HTTP", 1, 1)
    assert asked.response.previousResponse is None


def test_nothing_is_read_until_the_body_is_requested() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(HEAD + b"hello")
    was_paused = end.is_paused
    reader = asked.read()
    assert (was_paused, end.is_paused) == (True, False)
    assert reader.pieces == [b"hello"]
    end.send(b"world")
    assert asked.body == b"helloworld"


def test_what_was_on_its_way_when_the_reading_stopped_is_kept_in_order() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(HEAD)
    end.send(b"hel")
    end.send(b"lo")
    reader = asked.read()
    end.send(b"world")
    assert reader.body == b"helloworld"
    assert reader.is_whole


def test_a_reader_that_asks_at_once_is_not_held_up() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(HEAD + b"hello")
    assert not end.is_paused
    assert asked.reader is not None
    assert asked.reader.pieces == [b"hello"]


def test_a_server_is_not_late_before_the_body_is_requested() -> None:
    lab = Lab()
    asked = lab.ask(server=make_server(Timeouts(idle=10)), read=False)
    end = lab.accept()
    end.send(HEAD)
    lab.advance(1000)
    assert end.is_open
    asked.read()
    end.send(b"helloworld")
    assert asked.body == b"helloworld"


def test_a_whole_body_is_kept_for_a_late_reader() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(OK)
    assert asked.response.complete
    lab.ask()
    assert lab.attempts == 1, "the connection is free"
    end.send(OK)
    lab.turn()
    reader = asked.read()
    assert reader.pieces == [b"ok"]
    assert reader.complete == [True]
    assert reader.is_whole


def test_a_late_reader_learns_that_the_body_was_cut_short() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(HEAD + b"hell")
    end.reset()
    reader = asked.read()
    assert reader.pieces == [b"hell"]
    assert isinstance(asked.cause, UpstreamProtocolError)
    lab.assert_nothing_left()


def test_a_late_reader_that_pauses_at_the_first_piece_is_paused() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    end.send(HEAD + b"hello")
    asked.read(lambda reader: reader.transport.pauseProducing())
    assert end.is_paused


def test_a_reader_that_pauses_at_the_first_piece_is_paused() -> None:
    lab = Lab()
    asked, end = lab.asked(read=False)
    asked.result.addCallback(lambda _: asked.read(lambda reader: reader.transport.pauseProducing()))
    end.send(HEAD + b"hello")
    assert end.is_paused


def test_a_reader_pauses_and_resumes_the_servers_connection() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(HEAD + b"hello")
    assert asked.reader is not None
    asked.reader.transport.pauseProducing()
    was_paused = end.is_paused
    asked.reader.transport.resumeProducing()
    assert (was_paused, end.is_paused) == (True, False)


def test_a_reader_may_resume_after_the_connection_has_gone() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(HEAD + b"hello")
    assert asked.reader is not None
    asked.reader.transport.pauseProducing()
    end.reset()
    asked.reader.transport.resumeProducing()
    asked.reader.transport.pauseProducing()
    asked.reader.transport.stopProducing()
    assert isinstance(asked.cause, UpstreamProtocolError)
    lab.assert_nothing_left()
