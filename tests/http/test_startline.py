"""Start lines of other protocols, which llhttp accepts as HTTP, at any position and in any segmentation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.server_harness import SiteHarness, chunked, get, post
from tests.http.upstream_harness import OK, Lab
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.start_line import StatusLines

RTSP = get(b"/vllm/smuggled", version=b"RTSP/1.1")

#: requests that speak of RTSP, and are HTTP
INNOCENT = [
    get(b"/vllm/a", b"Via: 1.1 proxy, RTSP/1.0", b"X: GET /vllm/a RTSP/1.0"),
    get(b"/vllm/RTSP/1.0", b"X: RTSP/1.0"),
    post(b"/vllm/a", b"a GET /vllm/a RTSP/1.0\r\nHost: a\r\n\r\n"),
    post(b"/vllm/a", RTSP),
    chunked(b"/vllm/a", b"what is ", b"GET / RTSP/1.1\r\n", RTSP, trailers=b"X: RTSP/1.0\r\n"),
    get(b"/vllm/a", b"Upgrade: RTSP/1.0", b"Connection: upgrade", b"Content-Length: 12", method=b"POST")
    + b"an RTSP/1.0 ",
    post(b"/other/a", b" RTSP/1.0"),
]


def cut(data: bytes, at: list[int]) -> list[bytes]:
    cuts = sorted({place % len(data) for place in at})
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(INNOCENT), min_size=1, max_size=4), CUTS)
def test_requests_that_only_speak_of_another_protocol_are_served(requests: list[bytes], cuts: list[int]) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(*cut(b"".join(requests), cuts))
    assert [answer.status for answer in client.answers()] == [200] * len(requests)
    assert not client.ended


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([*INNOCENT, get(), post(b"/vllm/a", b"x")]), max_size=3), CUTS)
def test_a_request_of_another_protocol_is_refused_behind_whatever_was_served(
    requests: list[bytes], cuts: list[int]
) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(*cut(b"".join([*requests, RTSP]), cuts))
    client.send(get(b"/vllm/smuggled"))
    answers = client.answers()
    assert [answer.status for answer in answers] == [200] * len(requests) + [400]
    assert client.ended
    assert not any(request.uri == b"/vllm/smuggled" for request in harness.streaming.rendered)


def test_a_request_of_another_protocol_is_refused_for_every_place_where_it_can_be_cut() -> None:
    for before in (b"", get(), post(b"/vllm/a", b"GET /vllm/smuggled"), *INNOCENT):
        data = before + RTSP
        for at in range(len(before), len(data)):
            harness = SiteHarness()
            client = harness.connect()
            client.send(data[:at], data[at:])
            assert client.answers()[-1].status == 400
            assert not any(request.uri == b"/vllm/smuggled" for request in harness.streaming.rendered)


def test_a_request_of_another_protocol_is_refused_where_the_one_before_was_answered_early() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: request.answer(UpstreamProtocolError("early"))
    client = harness.connect()
    client.send(get(b"/vllm/a", b"Content-Length: 10", method=b"POST"))
    client.send(b"0123 RTSP/" + RTSP)
    assert [answer.status for answer in client.answers()] == [502, 400]


def test_what_follows_an_upgrade_is_kept_whatever_it_speaks_of() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: None
    client = harness.connect()
    head = get(b"/vllm/v1/realtime", b"Upgrade: websocket", b"Connection: upgrade", b"X: a RTSP/1.0")
    client.send(head + b"GET / RTSP/1.0\r\nframes\r\n")
    (request,) = harness.streaming.rendered
    assert request.head.protocols == {b"websocket"}
    assert client.channel.surplus == b"GET / RTSP/1.0\r\nframes\r\n"
    client.leave()


# towards servers

INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: RTSP/1.0\r\n\r\n"


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("interim", [b"", INTERIM, INTERIM * 2], ids=["alone", "after an interim", "after two"])
@pytest.mark.parametrize("line", [b"RTSP/1.0", b"RTSP/1.1", b"ICE/1.1", b"HTTP/2.0", b"HTTP/0.9", b"SIP/2.0"])
def test_a_servers_answer_in_another_protocol_is_nonsense(line: bytes, interim: bytes, step: int) -> None:
    lab = Lab()
    asked, end = lab.asked()
    data = interim + OK.replace(b"HTTP/1.1", line, 1)
    for at in range(0, len(data), step):
        if end.is_open:
            end.send(data[at : at + step])
    assert isinstance(asked.error, UpstreamProtocolError)
    lab.assert_nothing_left()


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("interim", [b"", INTERIM, INTERIM * 2, b"\r\n"])
def test_a_servers_answer_in_http_is_taken_whatever_it_speaks_of(interim: bytes, step: int) -> None:
    lab = Lab()
    asked, end = lab.asked()
    data = interim + b"HTTP/1.1 200 RTSP/1.0\r\nX: RTSP/1.0\r\nContent-Length: 22\r\n\r\nRTSP/1.0 200 OK\r\n\r\nICE"
    for at in range(0, len(data), step):
        end.send(data[at : at + step])
    assert asked.body == b"RTSP/1.0 200 OK\r\n\r\nICE"
    assert asked.response.phrase == b"RTSP/1.0"


def test_what_follows_a_switch_of_protocols_is_not_looked_at() -> None:
    lines = StatusLines()
    assert lines.allow(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nRTSP/1.0")
    assert lines.allow(b" 200 OK\r\n\r\nRTSP/1.0 200 OK\r\n")
