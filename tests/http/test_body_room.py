"""Bodies that are held whole: read only when there is room for them, and forgotten on every way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.http.server_harness import SEGMENT, Client, SiteHarness, chunked, get, post, reply
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.config.settings import Limits, Timeouts
from twisted_vllm.errors import BlockedApiKey, GatewayError
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.server.connection import HELD_LIMIT
from twisted_vllm.http.server.held_bodies import UNCOUNTED
from twisted_vllm.http.server.request import LOOSE_PIECES, GatewayRequest

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
KIB = 1_024

CALLERS = {
    b"a": Principal(kind="key", name="a", key_id="a" * 32),
    b"b": Principal(kind="key", name="b", key_id="b" * 32),
    b"m": MASTER,
    b"nobody": ANONYMOUS,
}


class Room:
    """A site whose resource holds the bodies of `/vllm/KEY/…` for the key, and answers when it is told.

    Attributes:
        held: the requests whose bodies arrived, oldest first.
    """

    def __init__(self, total: int = 1_000 * KIB, per_key: int | None = None, limit: int = 400 * KIB) -> None:
        limits = Limits(max_held_total_bytes=total, max_held_bytes_per_key=per_key)
        self.harness = SiteHarness(limits, Timeouts(held_body=30.0, client_body=60.0))
        self.held: list[GatewayRequest] = []
        self._limit = limit
        self.harness.streaming.behaviour = self._hold

    def _hold(self, request: GatewayRequest) -> None:
        request.work = None
        request.context.principal = CALLERS[request.uri.split(b"/")[2]]

        def arrived(body: bytes) -> None:
            self.held.append(request)

        request.collect_body(self._limit, arrived)

    @property
    def held_bytes(self) -> int:
        return self.harness.site.held_bodies.held

    @property
    def waiting(self) -> int:
        return self.harness.site.held_bodies.waiting

    def send(self, key: bytes = b"a", size: int = 200 * KIB) -> Client:
        """Send a request with a body, on a connection of its own: first the head, then the body."""
        client = self.harness.connect()
        data = post(b"/vllm/%b/x" % key, bytes(size))
        client.send(data[: len(data) - size], data[len(data) - size :])
        return client

    def answer(self, number: int = 0) -> None:
        reply(self.held.pop(number))


@pytest.fixture
def room() -> Room:
    return Room()


def test_a_body_without_room_stays_in_the_kernel_until_there_is_room(room: Room) -> None:
    first, second = room.send(), room.send()
    assert (first.unread, len(room.held), room.waiting) == (0, 1, 1)
    assert second.unread == 200 * KIB, "not a byte of it was read"
    room.answer()
    second.settle()
    assert (second.unread, len(room.held), room.waiting) == (0, 1, 0)
    room.answer()
    assert [client.answer().status for client in (first, second)] == [200, 200]


def test_another_key_does_not_wait(room: Room) -> None:
    for _ in range(3):
        room.send(b"a")
    other = room.send(b"b")
    assert (other.unread, room.waiting) == (0, 2)


def test_100_continue_is_sent_when_there_is_room(room: Room) -> None:
    room.send()
    waiting = room.harness.connect()
    waiting.send(get(b"/vllm/a/x", b"Expect: 100-continue", b"Content-Length: 204800", method=b"POST"))
    assert waiting.transport.value() == b""
    room.answer()
    assert waiting.transport.value() == CONTINUE


def test_a_small_body_that_came_with_its_head_needs_no_room(room: Room) -> None:
    client = room.harness.connect()
    client.send(post(b"/vllm/a/x", bytes(UNCOUNTED)))
    assert (len(room.held), room.held_bytes) == (1, 0)
    assert room.held[0].room is None
    room.answer()
    client.send(post(b"/vllm/a/x", bytes(UNCOUNTED + 1)))
    assert (len(room.held), room.held_bytes) == (1, UNCOUNTED + 1)


def test_a_chunked_body_grows_and_keeps_what_it_needs(room: Room) -> None:
    client = room.harness.connect()
    data = chunked(b"/vllm/a/x", *[bytes(20 * KIB)] * 5)
    head, end, body = data.partition(b"\r\n\r\n")
    client.send(head + end)
    assert room.held_bytes == SEGMENT
    client.send(body[: 70 * KIB])
    client.send(body[70 * KIB : 80 * KIB])
    assert room.held_bytes == 400 * KIB, "as much as is allowed, as eight times what came is more"
    client.send(body[80 * KIB :])
    assert (len(room.held), room.held_bytes) == (1, 100 * KIB)


def test_many_middling_chunked_bodies_go_on_at_the_same_time() -> None:
    """None of them takes the room of the largest body that is allowed."""
    room = Room(total=8_000 * KIB, per_key=8_000 * KIB, limit=8_000 * KIB)
    data = chunked(b"/vllm/a/x", *[bytes(20 * KIB)] * 5)
    for _ in range(10):
        room.harness.connect().send(data[: 80 * KIB])
    assert room.waiting == 0
    assert room.held_bytes <= 10 * 8 * 80 * KIB


def test_a_chunked_body_waits_for_more_room_without_being_read(room: Room) -> None:
    room.send()
    client = room.harness.connect()
    data = chunked(b"/vllm/a/x", *[bytes(60 * KIB)] * 5)
    client.send(data[:200])
    client.send(data[200:])
    assert room.waiting == 1
    assert client.unread >= 200 * KIB
    room.answer()
    client.settle()
    assert (client.unread, len(room.held)) == (0, 1)
    room.answer()
    assert client.answer().status == 200


def test_a_body_that_is_read_in_pieces_gets_none_before_it_has_room_for_more(room: Room) -> None:
    room.send()
    pieces: list[bytes] = []

    def hold(request: GatewayRequest) -> None:
        request.context.principal = CALLERS[b"a"]
        request.await_room(400 * KIB, lambda: request.stream_body(lambda data, last: pieces.append(data)))

    room.harness.streaming.behaviour = hold
    client = room.harness.connect()
    data = chunked(b"/vllm/a/x", *[bytes(30 * KIB)] * 9)
    client.send(data[:200])
    client.send(data[200:])
    before = sum(map(len, pieces))
    assert before <= SEGMENT
    assert (room.waiting, client.unread > 100 * KIB) == (1, True)
    client.channel.requests[0].pause_body()
    client.channel.requests[0].resume_body()
    client.settle()
    assert client.unread > 100 * KIB, "the pace of the reader does not undo the wait for room"
    room.answer()
    client.settle()
    assert sum(map(len, pieces)) == 270 * KIB


def test_many_tiny_pieces_of_a_body_that_waits_are_joined(room: Room) -> None:
    room.send()
    client = room.harness.connect()
    client.send(chunked(b"/vllm/a/x", *[b"x"] * 20_000)[:60_000])
    (waiting,) = client.channel.requests
    assert waiting.body_received > 5_000
    assert len(waiting.body_pieces) <= LOOSE_PIECES


def test_a_request_that_waits_in_vain_gets_503_and_says_when_to_come_again(room: Room) -> None:
    room.send()
    client = room.send()
    room.harness.pass_time(29)
    assert client.transport.value() == b""
    room.harness.pass_time(2)
    client.settle()
    answer = client.answer()
    assert (answer.status, answer.error()["code"]) == (503, "no_room_for_body")
    assert answer.header(b"retry-after") == b"5"
    assert (room.waiting, room.harness.site.held_bodies.refused) == (0, 1)


def test_a_silent_sender_does_not_keep_the_room_from_others(room: Room) -> None:
    silent = room.harness.connect()
    silent.send(post(b"/vllm/a/x", bytes(200 * KIB))[:200])
    other = room.send()
    assert room.waiting == 1
    room.harness.pass_time(12)
    assert silent.answer().status == 408
    other.settle()
    room.answer()
    assert other.answer().status == 200


def end_by_answer(room: Room, client: Client) -> None:
    room.answer()


def end_by_disconnect(room: Room, client: Client) -> None:
    client.leave()


def end_by_revocation(room: Room, client: Client) -> None:
    for request in room.harness.site.running():
        request.end_early(BlockedApiKey("This API key was blocked."), "revoked")


def end_by_failure(room: Room, client: Client) -> None:
    for request in room.harness.site.running():
        request.fail(GatewayError("It failed."))


def end_by_first_byte(room: Room, client: Client) -> None:
    """From then on the body is not needed: a long stream does not keep it."""
    room.held[0].relay_head(ResponseHead(200, b"OK", []))
    room.held[0].relay_body(b"first", False)


ENDINGS = [end_by_answer, end_by_disconnect, end_by_revocation, end_by_failure, end_by_first_byte]


@pytest.mark.parametrize("end", ENDINGS)
def test_the_room_of_a_held_body_is_given_back(room: Room, end: Callable[[Room, Client], None]) -> None:
    client = room.send()
    assert room.held_bytes == 200 * KIB
    end(room, client)
    assert (room.held_bytes, room.waiting) == (0, 0)


@pytest.mark.parametrize("end", [end_by_disconnect, end_by_revocation, end_by_failure])
def test_a_request_that_waits_is_forgotten(room: Room, end: Callable[[Room, Client], None]) -> None:
    room.send(size=250 * KIB)
    client = room.send()
    assert room.waiting == 1
    end(room, client)
    assert room.waiting == 0


@pytest.mark.parametrize("rest", [b"no chunk\r\n", None], ids=["malformed", "too slow"])
def test_the_room_of_a_body_that_breaks_off_is_given_back(room: Room, rest: bytes | None) -> None:
    client = room.harness.connect()
    client.send(chunked(b"/vllm/a/x", bytes(10 * KIB))[:-5])
    assert room.held_bytes > 0
    if rest is None:
        room.harness.pass_time(62)
    else:
        client.send(rest)
    assert client.answer().status == (408 if rest is None else 400)
    assert room.held_bytes == 0
    client.leave()
    room.harness.assert_clean()


@pytest.mark.parametrize(
    ("data", "size"),
    [(post(b"/vllm/a/x", bytes(5 * KIB * KIB))[:200], "5 MiB"), (chunked(b"/vllm/a/x", bytes(SEGMENT)), "2048 bytes")],
    ids=["declared", "chunked"],
)
def test_413_names_the_setting_and_the_size(data: bytes, size: str) -> None:
    room = Room(limit=2 * KIB)
    client = room.harness.connect()
    client.send(data)
    message = client.answer().error()["message"]
    assert "passthrough.limits.max_held_body_bytes" in message
    assert size in message
    assert "2048 bytes" in message


def test_the_master_key_has_a_share_too() -> None:
    room = Room()
    room.send(b"m")
    assert room.send(b"m").unread > 0


def test_in_open_mode_there_are_no_shares() -> None:
    room = Room()
    assert [room.send(b"nobody").unread for _ in range(4)] == [0] * 4


def test_all_pipelined_bytes_have_a_bound_and_the_connection_closes_after_its_answer() -> None:
    room = Room(total=8 * (3 * HELD_LIMIT))
    room.harness.streaming.behaviour = lambda request: room.held.append(request)
    clients = [room.harness.connect() for _ in range(5)]
    for client in clients:
        client.send(get(b"/vllm/a/x"), bytes(HELD_LIMIT))
    assert room.held_bytes == 3 * HELD_LIMIT
    for _ in range(5):
        room.answer()
    assert [client.answers()[0].closes for client in clients] == [False] * 3 + [True] * 2
    assert room.held_bytes == 0


def test_the_body_of_a_request_is_not_read_before_its_client_reads_the_answers_before_it() -> None:
    room = Room()
    client = room.harness.connect()
    client.send(get(b"/other/a"), post(b"/vllm/a/x", bytes(200 * KIB))[:20])
    client.channel.pauseProducing()
    client.send(post(b"/vllm/a/x", bytes(200 * KIB))[20:])
    assert client.unread >= 100 * KIB
    assert room.harness.streaming.rendered == []
    client.channel.resumeProducing()
    client.settle()
    assert (client.unread, len(room.held)) == (0, 1)
