"""The end of an exchange is reported once, however it ends: the request queue depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError

from tests.http.upstream_harness import OK, Asked, Lab, Upload, make_server, second_attempt
from twisted_vllm.config.settings import Timeouts

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
SERVER = make_server(Timeouts(response_head=10, idle=10))


class EndedLab(Lab):
    """A lab that counts the ends of the one exchange that it asks for.

    Attributes:
        ended: how often it ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0

    def begin(self, body: object = None, read: bool = True, **options: Any) -> Asked:
        return self.ask(b"POST", body=body, server=SERVER, read=read, on_ended=self._end, **options)

    def _end(self) -> None:
        self.ended += 1


def answered(lab: EndedLab) -> None:
    lab.begin()
    lab.accept().send(OK)


def answered_in_pieces(lab: EndedLab) -> None:
    lab.begin()
    end = lab.accept()
    end.send(CHUNKED)
    assert lab.ended == 0
    end.send(b"0\r\n\r\n")


def answered_until_the_connection_ends(lab: EndedLab) -> None:
    lab.begin()
    end = lab.accept()
    end.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert lab.ended == 0
    end.close()


def answered_without_a_reader(lab: EndedLab) -> None:
    lab.begin(read=False)
    lab.accept().send(OK)


def answered_before_the_body_was_sent(lab: EndedLab) -> None:
    lab.begin(Upload())
    lab.accept().send(OK)


def unreachable(lab: EndedLab) -> None:
    lab.begin()
    lab.refuse(ConnectionRefusedError())


def closed_before_the_head(lab: EndedLab) -> None:
    lab.begin()
    lab.accept().close()


def reset_in_the_body(lab: EndedLab) -> None:
    lab.begin()
    end = lab.accept()
    end.send(CHUNKED)
    end.reset()


def not_http(lab: EndedLab) -> None:
    lab.begin()
    lab.accept().send(b"SSH-2.0-OpenSSH_9.7\r\n")


def not_http_in_the_body(lab: EndedLab) -> None:
    lab.begin()
    end = lab.accept()
    end.send(CHUNKED)
    end.send(b"not a size\r\n")


def too_late(lab: EndedLab) -> None:
    lab.begin()
    lab.accept()
    lab.advance(11)


def too_late_in_the_body(lab: EndedLab) -> None:
    lab.begin()
    lab.accept().send(CHUNKED)
    lab.advance(11)


def a_body_that_breaks_off(lab: EndedLab) -> None:
    upload = Upload()
    lab.begin(upload)
    lab.accept()
    upload.fail(OSError("the disk is gone"))


def cancelled_while_connecting(lab: EndedLab) -> None:
    lab.begin().result.cancel()


def cancelled_before_the_head(lab: EndedLab) -> None:
    asked = lab.begin()
    lab.accept()
    asked.result.cancel()


def cut_in_the_body(lab: EndedLab) -> None:
    asked = lab.begin()
    lab.accept().send(CHUNKED)
    asked.response.cut()


def sent_again(lab: EndedLab) -> None:
    lab.ask(server=SERVER)
    stale = lab.accept()
    stale.send(OK)
    lab.begin(again=second_attempt)
    stale.close()
    assert lab.ended == 0
    lab.accept().send(OK)


def the_agent_is_closed(lab: EndedLab) -> None:
    lab.begin()
    lab.accept()
    lab.agent.close()


def the_agent_is_closed_while_connecting(lab: EndedLab) -> None:
    lab.begin()
    lab.agent.close()


def asked_after_the_agent_was_closed(lab: EndedLab) -> None:
    lab.agent.close()
    lab.begin()


WAYS = [
    answered,
    answered_in_pieces,
    answered_until_the_connection_ends,
    answered_without_a_reader,
    answered_before_the_body_was_sent,
    unreachable,
    closed_before_the_head,
    reset_in_the_body,
    not_http,
    not_http_in_the_body,
    too_late,
    too_late_in_the_body,
    a_body_that_breaks_off,
    cancelled_while_connecting,
    cancelled_before_the_head,
    cut_in_the_body,
    sent_again,
    the_agent_is_closed,
    the_agent_is_closed_while_connecting,
    asked_after_the_agent_was_closed,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_exchange_ends_once(way: Callable[[EndedLab], None]) -> None:
    lab = EndedLab()
    way(lab)
    lab.turn()
    assert lab.ended == 1
    # whatever comes after it
    lab.agent.close()
    lab.advance(20)
    assert lab.ended == 1


def test_a_reader_that_fails_at_the_last_piece_does_not_keep_the_exchange() -> None:
    lab = EndedLab()
    asked = lab.begin(read=False)
    end = lab.accept()
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")

    def fail(_: object) -> None:
        raise ZeroDivisionError

    asked.read(fail)
    with pytest.raises(ZeroDivisionError):
        end.send(b"ok")
    assert lab.ended == 1


def test_a_connection_is_free_when_its_exchange_ends() -> None:
    lab = Lab()
    lab.ask(on_ended=lambda: lab.ask(target=b"/next"))
    end = lab.accept()
    end.send(OK)
    assert lab.attempts == 1
    assert b"GET /next " in end.received
