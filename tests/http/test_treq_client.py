"""treq's shape over the upstream agent, without what treq does to requests and responses."""

from __future__ import annotations

import gzip
from io import BytesIO
from typing import Any

import pytest
import treq
from treq.client import HTTPClient
from twisted.internet.task import Cooperator
from twisted.web.client import FileBodyProducer
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface.verify import verifyObject

from tests.http.upstream_harness import OK, Asked, Lab, Upload, make_server
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import UpstreamTimeout
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.treq_client import PassThroughClient

URL = b"http://192.0.2.7:8000/v1/models?q=1&q=2+3"


class ClientLab(Lab):
    """A lab with a client over its agent."""

    def __init__(self) -> None:
        super().__init__()
        self.client = PassThroughClient(self.agent)

    def request(self, method: bytes = b"GET", url: bytes = URL, **options: Any) -> Asked:
        return Asked(read=True).attend(self.client.request(method, url, **options))


def lines_of(raw: bytes) -> list[bytes]:
    return raw.partition(b"\r\n\r\n")[0].split(b"\r\n")


def test_it_is_treqs_client() -> None:
    assert isinstance(ClientLab().client, HTTPClient)


def test_a_request_carries_its_target_and_host_and_nothing_else() -> None:
    lab = ClientLab()
    asked = lab.request()
    end = lab.accept()
    assert end.received == b"GET /v1/models?q=1&q=2+3 HTTP/1.1\r\nHost: 192.0.2.7:8000\r\n\r\n"
    end.send(OK)
    assert asked.body == b"ok"


def test_the_path_and_the_query_are_not_parsed_again() -> None:
    lab = ClientLab()
    lab.request(url=b"http://192.0.2.7:8000/a%2Fb/./%7Ec//d?x=%41&&y=a+b&x")
    assert lines_of(lab.accept().received)[0] == b"GET /a%2Fb/./%7Ec//d?x=%41&&y=a+b&x HTTP/1.1"


def test_raw_headers_go_out_as_they_are_and_a_body_in_hand_with_them() -> None:
    lab = ClientLab()
    asked = Asked(read=True)
    headers = RawHeaders.from_pairs([(b"b", b"2"), (b"A", b"1")])
    asked.attend(lab.client.request(b"PUT", URL, headers=headers, data=b"body", informational=asked.on_interim))
    end = lab.accept()
    assert end.writes == [b"PUT /v1/models?q=1&q=2+3 HTTP/1.1\r\nb: 2\r\nA: 1\r\n\r\nbody"]
    end.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
    assert asked.interim == [(103, b"Early Hints", [])]
    assert asked.body == b"ok"


def test_a_body_in_hand_is_given_its_length() -> None:
    lab = ClientLab()
    lab.request(b"POST", data=b"body")
    assert lab.accept().writes == [
        b"POST /v1/models?q=1&q=2+3 HTTP/1.1\r\nHost: 192.0.2.7:8000\r\nContent-Length: 4\r\n\r\nbody"
    ]


def test_the_whole_exchange_may_have_a_limit() -> None:
    lab = ClientLab()
    asked = lab.request(server=make_server(Timeouts(total=5.0)))
    lab.accept().send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell")
    lab.advance(6)
    assert isinstance(asked.cause, UpstreamTimeout)


def test_a_cookie_that_was_set_for_one_is_not_sent_for_another() -> None:
    lab = ClientLab()
    first = lab.request()
    end = lab.accept()
    end.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=alice; Path=/\r\nContent-Length: 2\r\n\r\nok")
    assert first.response.headers.getRawHeaders(b"set-cookie") == [b"session=alice; Path=/"]
    end.clear_writes()
    lab.request()
    assert b"cookie" not in end.received.lower()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_relayed_and_not_followed(status: int) -> None:
    lab = ClientLab()
    asked = lab.request()
    end = lab.accept()
    end.clear_writes()
    end.send(b"HTTP/1.1 %d Moved\r\nLocation: http://192.0.2.99/\r\nContent-Length: 4\r\n\r\nmove" % status)
    assert asked.response.code == status
    assert asked.response.headers.getRawHeaders(b"location") == [b"http://192.0.2.99/"]
    assert asked.body == b"move"
    assert lab.attempts == 1
    assert end.received == b""


def test_a_compressed_body_stays_compressed_and_keeps_its_length() -> None:
    lab = ClientLab()
    asked = lab.request(headers=Headers({b"Accept-Encoding": [b"gzip"]}))
    end = lab.accept()
    assert [line for line in lines_of(end.received) if line.lower().startswith(b"accept")] == [b"Accept-Encoding: gzip"]
    body = gzip.compress(b"hello " * 100)
    end.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    assert asked.response.raw_headers == [(b"Content-Encoding", b"gzip"), (b"Content-Length", b"%d" % len(body))]
    assert asked.response.headers.getRawHeaders(b"content-length") == [b"%d" % len(body)]
    assert asked.response.length == len(body)
    assert asked.body == body


@pytest.mark.parametrize(
    "option",
    [
        "params",
        "json",
        "files",
        "cookies",
        "auth",
        "allow_redirects",
        "browser_like_redirects",
        "timeout",
        "unbuffered",
    ],
)
def test_an_option_of_treqs_that_would_alter_the_request_is_refused_by_name(option: str) -> None:
    lab = ClientLab()
    options: dict[str, Any] = {option: None}
    with pytest.raises(TypeError, match=option):
        lab.client.request(b"GET", URL, **options)
    assert lab.attempts == 0


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "head"])
def test_treqs_short_forms_work_too(method: str) -> None:
    lab = ClientLab()
    asked = Asked(read=True).attend(getattr(lab.client, method)(URL))
    end = lab.accept()
    assert end.received.startswith(method.upper().encode() + b" /v1/models?")
    end.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert asked.response.code == 204


def test_treqs_content_reads_the_body() -> None:
    lab = ClientLab()
    found: list[bytes] = []
    lab.client.request(b"GET", URL).addCallback(treq.content).addCallback(found.append)
    end = lab.accept()
    end.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    end.send(b"3\r\ntwo\r\n0\r\n\r\n")
    assert found == [b"onetwo"]
    assert len(lab.agent.pool) == 1


# the agent in IAgent's shape


def ask(lab: Lab, *arguments: Any) -> Asked:
    return Asked(read=True).attend(lab.agent.request(*arguments))


def test_the_agent_takes_twisteds_headers_and_bodies() -> None:
    lab = Lab()
    cooperator = Cooperator(scheduler=lambda call: lab.clock.callLater(0, call))
    body = FileBodyProducer(BytesIO(b"hello" * 20_000), cooperator)
    headers = Headers({b"X-Many": [b"1", b"2"], b"Content-Type": [b"text/plain"]})
    asked = ask(lab, b"POST", URL, headers, body)
    end = lab.accept()
    for _ in range(5):
        lab.turn()
    head, _, sent = end.received.partition(b"\r\n\r\n")
    first, *rest = lines_of(head)
    assert first == b"POST /v1/models?q=1&q=2+3 HTTP/1.1"
    assert sorted(rest) == [
        b"Content-Length: 100000",
        b"Content-Type: text/plain",
        b"Host: 192.0.2.7:8000",
        b"X-Many: 1",
        b"X-Many: 2",
    ]
    assert sent == b"hello" * 20_000
    end.send(OK)
    assert asked.body == b"ok"
    assert verifyObject(IResponse, asked.response)
    assert len(lab.agent.pool) == 1


def test_the_agent_sends_a_body_of_unknown_length_in_chunks() -> None:
    lab = Lab()
    upload = Upload(UNKNOWN_LENGTH)
    asked = ask(lab, b"POST", URL, None, upload)
    end = lab.accept()
    assert lines_of(end.received)[1:] == [b"Host: 192.0.2.7:8000", b"Transfer-Encoding: chunked"]
    upload.write(b"hello")
    upload.finish()
    assert end.received.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    end.send(OK)
    assert asked.body == b"ok"


def test_the_agent_reads_the_port_and_the_host_from_the_url() -> None:
    lab = Lab()
    ask(lab, b"GET", b"http://192.0.2.9/")
    ask(lab, b"GET", b"http://[2001:db8::1]:81/x")
    assert [client[:2] for client in lab.clock.tcpClients] == [("192.0.2.9", 80), ("2001:db8::1", 81)]


def test_a_url_without_a_path_asks_for_the_root() -> None:
    lab = Lab()
    ask(lab, b"GET", b"http://192.0.2.9")
    assert lines_of(lab.accept().received)[0] == b"GET / HTTP/1.1"


def test_requests_to_the_same_server_share_its_connections() -> None:
    lab = Lab()
    asked = ask(lab, b"GET", b"http://192.0.2.9/a")
    end = lab.accept()
    end.send(OK)
    assert asked.body == b"ok"
    ask(lab, b"GET", b"http://192.0.2.9/b")
    assert lab.attempts == 1


def test_the_agent_keeps_the_host_that_it_is_given() -> None:
    lab = Lab()
    ask(lab, b"GET", URL, Headers({b"Host": [b"models.example"]}))
    assert lines_of(lab.accept().received)[1:] == [b"Host: models.example"]


def test_the_agent_declares_the_length_of_a_body_once() -> None:
    lab = Lab()
    ask(lab, b"POST", URL, Headers({b"Content-Length": [b"5"]}), Upload(5))
    assert sorted(lines_of(lab.accept().received)[1:]) == [b"Content-Length: 5", b"Host: 192.0.2.7:8000"]
