"""Posting to a URL: what is sent, and how each answer and failure reads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.protocols.basic import LineReceiver

from tests.certificates import Authority
from tests.observability.delivery.receiver import CUT, HANG, Receiver, Reply
from twisted_vllm.config.secret import Secret
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed
from twisted_vllm.observability.delivery.post import MAX_ANSWER, Answer, Poster, http_agent, retry_after

JSON = {"Content-Type": "application/json"}


def make_poster(
    reactor: Any, url: str, headers: Mapping[str, Secret] | None = None, ca_file: str | None = None
) -> Poster:
    agent, pool = http_agent(reactor, ca_file)
    return Poster(agent, Secret(url), headers or {}, pool)


async def failure_of(reactor: Any, url: str, ca_file: str | None = None) -> DeliveryFailed:
    poster = make_poster(reactor, url, {"authorization": Secret("Bearer sk-secret")}, ca_file)
    with pytest.raises(DeliveryFailed) as caught:
        await poster.post(b"{}", JSON)
    poster.close()
    assert "secret" not in str(caught.value) + repr(caught.value)
    return caught.value


@pytest_twisted.ensureDeferred
async def test_a_body_is_posted_with_the_headers_of_the_settings(reactor: Any) -> None:
    receiver = Receiver(reactor)
    await receiver.start()
    poster = make_poster(reactor, receiver.url, {"Authorization": Secret("Bearer t"), "content-type": Secret("x/y")})
    assert await poster.post(b"{}", JSON) == Answer(200)
    (posted,) = receiver.posted
    assert posted.path == "/in?token=sk-secret-token"
    assert posted.headers["authorization"] == "Bearer t"
    assert posted.headers["content-type"] == "x/y"
    assert posted.body == b"{}"
    poster.close()
    await receiver.stop()


@pytest.mark.parametrize(
    ("reply", "retryable", "too_large", "after"),
    [
        (Reply(500), True, False, None),
        (Reply(503, {"retry-after": "7"}), True, False, 7.0),
        (Reply(429, {"retry-after": "x"}), True, False, None),
        (Reply(408), True, False, None),
        (Reply(400), False, False, None),
        (Reply(401), False, False, None),
        (Reply(501), False, False, None),
        (Reply(413), False, True, None),
        (Reply(302, {"location": "http://127.0.0.1:1/"}), False, False, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_each_status_says_whether_to_try_again(
    reactor: Any, reply: Reply, retryable: bool, too_large: bool, after: float | None
) -> None:
    receiver = Receiver(reactor)
    await receiver.start()
    receiver.replies = [reply]
    error = await failure_of(reactor, receiver.url)
    assert (error.retryable, error.too_large, error.retry_after) == (retryable, too_large, after)
    assert error.message.startswith(f"it answers {reply.status}")
    await receiver.stop()


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_reached_may_be_tried_again(reactor: Any) -> None:
    receiver = Receiver(reactor)
    await receiver.start()
    receiver.replies = [Reply(CUT)]
    error = await failure_of(reactor, receiver.url)
    assert error.retryable
    assert error.message.startswith("the connection broke")
    await receiver.stop()
    error = await failure_of(reactor, receiver.url)
    assert (error.retryable, error.message) == (True, "it refuses connections")


@pytest_twisted.ensureDeferred
async def test_an_answer_without_end_does_not_fill_the_memory(reactor: Any) -> None:
    receiver = Receiver(reactor)
    await receiver.start()
    receiver.replies = [Reply(200, {}, b"x" * (4 * MAX_ANSWER)), Reply(200, {}, b"short")]
    poster = make_poster(reactor, receiver.url)
    answer = await poster.post(b"{}", JSON, read=True)
    assert len(answer.body) == MAX_ANSWER
    assert await poster.post(b"{}", JSON, read=True) == Answer(200, b"short")
    poster.close()
    await receiver.stop()


class OldReceiver(LineReceiver):
    """Speaks HTTP/1.0, as Python's http.server does: it answers one request of each connection, and closes it."""

    def lineReceived(self, line: bytes) -> None:
        if not line:
            transport: Any = self.transport
            transport.write(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            transport.loseConnection()
            self.setRawMode()

    def rawDataReceived(self, data: bytes) -> None:
        assert data == b"{}"


@pytest_twisted.ensureDeferred
async def test_a_receiver_that_closes_after_each_answer_is_no_failure(reactor: Any) -> None:
    port = reactor.listenTCP(0, Factory.forProtocol(OldReceiver), interface="127.0.0.1")
    poster = make_poster(reactor, f"http://127.0.0.1:{port.getHost().port}/")
    for _ in range(3):
        assert await poster.post(b"{}", JSON) == Answer(200)
    poster.close()
    await port.stopListening()
    await deferLater(reactor, 0.01)


@pytest_twisted.ensureDeferred
async def test_cancelling_closes_the_connection(reactor: Any) -> None:
    receiver = Receiver(reactor)
    await receiver.start()
    receiver.replies = [Reply(HANG)]
    poster = make_poster(reactor, receiver.url)
    posting = poster.post(b"{}", JSON)
    await deferLater(reactor, 0.05)
    posting.cancel()
    with pytest.raises(CancelledError):
        await posting
    poster.close()
    await receiver.stop()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_tls_is_checked_against_the_named_authority(reactor: Any, tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.write(tmp_path, "server", "127.0.0.1")
    receiver = Receiver(reactor, f":privateKey={pair}")
    await receiver.start()
    ca_file = str(authority.write_own(tmp_path))
    poster = make_poster(reactor, receiver.url, None, ca_file)
    assert await poster.post(b"{}", JSON) == Answer(200)
    poster.close()
    error = await failure_of(reactor, receiver.url)
    assert error.message == "TLS failed: certificate verify failed"
    await receiver.stop()


def test_a_file_without_a_certificate_is_refused(reactor: Any, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("what")
    with pytest.raises(ValueError, match="no certificate"):
        http_agent(reactor, str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nwhat\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="cannot be read"):
        http_agent(reactor, str(tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("120", 120.0),
        (" 3 ", 3.0),
        ("", None),
        ("-1", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 60.0),
        ("Wed, 21 Oct 2015 07:20:00 GMT", 0.0),
        ("soon", None),
        ("9" * 400, 999_999_999.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(said: str, seconds: float | None) -> None:
    assert retry_after(said, datetime(2015, 10, 21, 7, 27, tzinfo=UTC)) == seconds


class Endless(Protocol):
    """Answers without an end."""

    beginning = b""
    piece = b""

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(b"HTTP/1.1 200 OK\r\n" + self.beginning)
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        transport: Any = self.transport
        self.factory.sent += len(self.piece)
        transport.write(self.piece)

    def stopProducing(self) -> None: ...


class EndlessFactory(Factory):
    noisy = False

    def __init__(self, beginning: bytes, piece: bytes) -> None:
        self.sent = 0
        self.protocol = type("Endless", (Endless,), {"beginning": beginning, "piece": piece})


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (b"", b"name: value\r\n" * 1000),
        (b"x: ", b"x" * 10_000),
        (b"transfer-encoding: chunked\r\n\r\n1;", b"x" * 10_000),
        (b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 1000),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_answer_without_an_end_is_cut(reactor: Any, beginning: bytes, piece: bytes) -> None:
    server = EndlessFactory(beginning, piece)
    port = reactor.listenTCP(0, server, interface="127.0.0.1")
    poster = make_poster(reactor, f"http://127.0.0.1:{port.getHost().port}/")
    posting: Deferred[Answer] = poster.post(b"{}", JSON)
    posting.addTimeout(10, reactor)
    with suppress(DeliveryFailed):
        await posting
    # the rest is what the kernel buffers
    assert server.sent < 8_000_000
    poster.close()
    await maybeDeferred(port.stopListening)


@pytest_twisted.ensureDeferred
async def test_many_answers_on_one_connection_are_no_long_one(reactor: Any) -> None:
    receiver = Receiver(reactor)
    await receiver.start()
    poster = make_poster(reactor, receiver.url)
    for _ in range(8):
        receiver.replies = [Reply(200, body=b"x" * (MAX_ANSWER - 10))]
        assert await poster.post(b"{}", JSON) == Answer(200)
    poster.close()
    await receiver.stop()
