"""A server's 101: when its connection becomes a tunnel, and when not."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.python.failure import Failure

from tests.http.server_harness import SiteHarness, get
from tests.http.upstream_harness import BodyReader, Lab, ServerEnd, make_server
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.tunnel import CLOSING, SwitchedResponse

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-A: 1\r\n\r\n"


class Handshake:
    """Asks for an upgrade, and keeps what comes of it.

    Attributes:
        response: the response.
        error: what the request failed with.
        interim: the statuses of interim responses.
        ended: how often the exchange ended.
    """

    def __init__(self) -> None:
        self.response: Any = None
        self.error: BaseException | None = None
        self.interim: list[int] = []
        self.ended = 0

    def ask(self, lab: Lab, timeouts: Timeouts | None = None) -> ServerEnd:
        server = make_server(timeouts)
        result = lab.agent.request(
            b"GET",
            server.url + b"/",
            server=server,
            protocols=frozenset((b"websocket", b"chat/2")),
            informational=lambda status, reason, headers: self.interim.append(status),
            on_ended=self._end,
        )
        result.addCallbacks(self.responded, self._failed)
        return lab.accept()

    def responded(self, response: UpstreamResponse) -> None:
        self.response = response

    def _failed(self, failure: Failure) -> None:
        self.error = failure.value

    def _end(self) -> None:
        self.ended += 1


class Joining(Handshake):
    """Joins the tunnel that it gets to a client in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[str] = []
        self._house = SiteHarness()
        self._house.streaming.behaviour = lambda request: None
        self.client = self._house.connect()
        self.client.send(get(b"/vllm/a", b"Connection: Upgrade", b"Upgrade: websocket"))

    def responded(self, response: UpstreamResponse) -> None:
        super().responded(response)
        [request] = self._house.streaming.rendered
        self.response.tunnel.join(request, response.head, self.outcomes.append)

    @property
    def received(self) -> bytes:
        """What the client got once the turn was over."""
        self._house.clock.advance(0)
        return bytes(self.client.transport.value())


@pytest.mark.parametrize("step", [1, 2, 3, 11, 1000])
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_what_the_server_sends_right_after_its_101_is_the_client_s(step: int, interim: bytes) -> None:
    lab, joining = Lab(), Joining()
    end = joining.ask(lab)
    data = interim + SWITCH + b"HTTP/1.1 200 OK\r\n\r\n\x00early"
    for at in range(0, len(data), step):
        end.send(data[at : at + step])
    end.send(b"late")
    head, _, rest = joining.received.partition(b"\r\n\r\n")
    assert rest == b"HTTP/1.1 200 OK\r\n\r\n\x00earlylate"
    assert head.startswith(SWITCH[:-2])
    assert joining.interim == ([100] if interim else [])
    assert end.is_open
    assert not end.is_paused
    assert len(lab.agent.pool) == 0


@pytest.mark.parametrize(
    "head",
    [
        SWITCH.replace(b"websocket", b"h2c"),
        SWITCH.replace(b"websocket", b"websocket, other"),
        SWITCH.replace(b"Upgrade: websocket\r\n", b""),
        SWITCH.replace(b"Connection: Upgrade\r\n", b""),
        SWITCH.replace(b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b""),
        SWITCH.replace(b"websocket", b""),
    ],
)
def test_a_101_to_an_unrequested_protocol_is_an_error(head: bytes) -> None:
    lab, asking = Lab(), Handshake()
    end = asking.ask(lab)
    end.send(head + b"frames")
    assert isinstance(asking.error, UpstreamProtocolError)
    assert end.is_cut
    assert asking.ended == 1
    lab.assert_nothing_left()


def test_a_server_may_choose_among_the_protocols_in_any_case_of_letters() -> None:
    lab, joining = Lab(), Joining()
    end = joining.ask(lab)
    end.send(SWITCH.replace(b"websocket", b"Chat/2"))
    assert joining.response.code == 101


def test_a_101_without_a_client_is_aborted() -> None:
    lab, asking = Lab(), Handshake()
    end = asking.ask(lab)
    end.send(SWITCH + b"early")
    assert isinstance(asking.response, SwitchedResponse)
    assert end.is_cut
    assert asking.ended == 1
    lab.assert_nothing_left()


def test_a_refusal_is_an_ordinary_response_and_its_connection_is_used_again() -> None:
    lab, asking = Lab(), Handshake()
    end = asking.ask(lab)
    end.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    assert asking.response.code == 403
    reader = BodyReader(asking.response)
    asking.response.deliverBody(reader)
    assert (reader.body, reader.is_whole) == (b"no", True)
    assert end.is_open
    assert len(lab.agent.pool) == 1
    # and the connection is none that has switched
    again = lab.ask()
    assert lab.attempts == 1
    end.send(SWITCH)
    assert isinstance(again.error, UpstreamProtocolError)


def test_lengths_in_a_101_frame_nothing() -> None:
    lab, joining = Lab(), Joining()
    end = joining.ask(lab)
    end.send(SWITCH[:-2] + b"Content-Length: 3\r\n\r\nabcdef")
    assert joining.received.endswith(b"\r\n\r\nabcdef")
    assert b"ontent-" not in joining.received


def test_a_101_after_a_whole_response_is_not_taken_for_an_answer() -> None:
    lab, asking = Lab(), Handshake()
    end = asking.ask(lab)
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + SWITCH)
    assert asking.response.code == 200
    assert end.is_cut


def test_the_waits_for_a_response_end_with_its_101() -> None:
    lab, joining = Lab(), Joining()
    end = joining.ask(lab, Timeouts(response_head=10, idle=10, total=20, tunnel_idle=300))
    end.send(SWITCH)
    lab.advance(299)
    end.send(b"a")
    lab.advance(299)
    assert end.is_open
    lab.advance(2)
    assert joining.outcomes == ["upstream_failed"]
    assert joining.ended == 1


@pytest.mark.parametrize("leaves", ["client", "server"])
def test_the_exchange_ends_with_its_tunnel(leaves: str) -> None:
    lab, joining = Lab(), Joining()
    end = joining.ask(lab)
    end.send(SWITCH + b"data")
    assert joining.ended == 0
    if leaves == "client":
        joining.client.leave()
    else:
        end.close()
    assert joining.ended == 1
    lab.turn()
    lab.advance(CLOSING + 1)
    assert joining.ended == 1
