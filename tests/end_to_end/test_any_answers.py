"""For any pipelined requests and any kind of answer, over real sockets: each client gets its own answers, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.end_to_end_harness import MASTER_KEY, Wire
from tests.end_to_end.messages import LAST
from tests.end_to_end.test_any_segments import CUTS, Trial, over_sockets

KINDS = ("plain", "chunked", "empty", "junk", "unmodified", "early", "until the end", "hints", "then closes", "half")


class Server:
    """Answers each request as its path says, and closes where that is the answer's end."""

    def __init__(self, trial: Trial) -> None:
        self._read: dict[Wire, int] = {}
        self._early: set[bytes] = set()
        trial.server.respond = self._respond

    def _respond(self, wire: Wire) -> None:
        while (taken := self._answer(wire, wire.received[self._read.get(wire, 0) :])) is not None:
            self._read[wire] = self._read.get(wire, 0) + taken

    def _answer(self, wire: Wire, raw: bytes) -> int | None:
        """Answer the first request of `raw` once it is there, or its head is where that is enough; return its size."""
        head, end, rest = raw.partition(b"\r\n\r\n")
        if not end:
            return None
        found = re.match(rb"(GET|HEAD|POST) /v(\d+)-([a-z_]+) ", head)
        assert found is not None, head
        method, number, kind = found[1], found[2], found[3].decode().replace("_", " ")
        size = _body_size(head, rest)
        if size is None and (kind != "early" or number in self._early):
            return None
        if number in self._early:
            # answered when its head came
            return len(head) + 4 + (size or 0)
        if kind == "early":
            self._early.add(number)
        body = b"body-" + number
        length = b"Content-Length: %d\r\n" % len(body)
        ok = b"HTTP/1.1 200 OK\r\nX-Number: " + number + b"\r\n"
        sent = b"" if method == b"HEAD" else body
        if kind in ("chunked", "hints"):
            chunks = b"" if method == b"HEAD" else b"%x\r\n%b\r\n" % (len(body), body) + LAST
            hints = b"HTTP/1.1 103 Early Hints\r\n\r\n" if kind == "hints" else b""
            wire.send(hints + ok + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        elif kind in ("empty", "junk"):
            junk = b"HTTP/1.1 666 Junk\r\n\r\n" if kind == "junk" else b""
            wire.send(b"HTTP/1.1 204 No Content\r\nX-Number: " + number + b"\r\n\r\n" + junk)
        elif kind == "unmodified":
            wire.send(b"HTTP/1.1 304 Not Modified\r\nX-Number: " + number + b"\r\n" + length + b"\r\n")
        elif kind == "until the end":
            wire.send(ok + b"\r\n" + sent)
            wire.close()
        elif kind == "half":
            wire.send(ok + length + b"\r\n" + sent[:2])
            if sent:
                wire.close()
        else:
            wire.send(ok + length + b"\r\n" + sent)
            if kind == "then closes":
                wire.close()
        return None if size is None else len(head) + 4 + size


def _body_size(head: bytes, rest: bytes) -> int | None:
    """Return the size of a body that is there whole, or None."""
    if b"ransfer-Encoding" in head:
        end = rest.find(b"0\r\n\r\n")
        return None if end < 0 else end + 5
    found = re.search(rb"Content-Length: (\d+)", head)
    size = 0 if found is None else int(found[1])
    return size if len(rest) >= size else None


def read(raw: bytes, methods: list[bytes]) -> Iterator[tuple[int, bytes, bytes, bool]]:
    """Read answers; give the status, number and body of each, and whether it is whole."""
    for method in methods:
        head, end, raw = raw.partition(b"\r\n\r\n")
        while end and head.startswith(b"HTTP/1.1 103 "):
            head, end, raw = raw.partition(b"\r\n\r\n")
        if not end:
            assert not head, head
            return
        status = int(head[9:12])
        number = re.search(rb"X-Number: (\d+)", head)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        name = b"" if number is None else number[1]
        if method == b"HEAD" or status in (204, 304):
            yield status, name, b"", True
        elif length is not None:
            size = int(length[1])
            body, whole, raw = raw[:size], len(raw) >= size, raw[size:]
            yield status, name, body, whole
        else:
            assert b"Transfer-Encoding: chunked" in head, head
            body = b""
            while raw:
                line, _, raw = raw.partition(b"\r\n")
                size = int(line, 16)
                body, raw = body + raw[:size], raw[size + 2 :]
                if not size:
                    break
            yield status, name, body, True
    assert not raw, raw


@st.composite
def lines_of_requests(draw: st.DrawFn) -> list[tuple[bytes, str, bytes]]:
    """Draw requests: the method, the kind of answer, and all of the request."""
    drawn = []
    for number in range(draw(st.integers(1, 5))):
        method = draw(st.sampled_from([b"GET", b"HEAD", b"POST"]))
        kind = draw(st.sampled_from(KINDS))
        target = b"/vllm/v%d-%b" % (number, kind.replace(" ", "_").encode())
        head = method + b" " + target + b" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + MASTER_KEY.encode()
        body = b""
        if method == b"POST":
            size = draw(st.sampled_from([0, 10, 3_000]))
            if draw(st.booleans()):
                head += b"\r\nTransfer-Encoding: chunked"
                body = (b"%x\r\n%b\r\n" % (size, b"x" * size) if size else b"") + LAST
            else:
                head += b"\r\nContent-Length: %d" % size
                body = b"x" * size
        drawn.append((method, kind, head + b"\r\n\r\n" + body))
    return drawn


@pytest.fixture
def trial(reactor: Any, stand_in: Any, gateway_to: Any) -> Iterator[Trial]:
    server = stand_in()
    yield Trial(reactor, gateway_to(server.port), server)


@pytest_twisted.ensureDeferred
async def test_each_request_in_line_gets_its_own_answer_whatever_kinds_of_answers_come(trial: Trial) -> None:
    async def play(requests: list[tuple[bytes, str, bytes]], cuts: list[int]) -> None:
        Server(trial)
        client = await trial.gateway.connect()
        methods = [method for method, _, _ in requests]
        answers: list[tuple[int, bytes, bytes, bool]] = []

        def is_over() -> bool:
            answers[:] = read(client.received, methods) if client.received.endswith(ENDS) else []
            return client.lost is not None or (len(answers) == len(requests) and answers[-1][3])

        await trial.send(client, b"".join(raw for _, _, raw in requests), cuts)
        await client.until(is_over)
        answers = list(read(client.received, methods))
        for at, ((method, kind, _), (status, number, body, whole)) in enumerate(zip(requests, answers, strict=False)):
            if status == 502:
                # a body that streamed to a connection that the server had closed meanwhile cannot be sent again
                assert method == b"POST"
                continue
            assert number == b"%d" % at
            expects_body = method != b"HEAD" and kind not in ("empty", "junk", "unmodified")
            assert whole == (kind != "half" or method == b"HEAD")
            if whole:
                assert body == (b"body-%d" % at if expects_body else b"")
        if len(answers) < len(requests):
            # after a cut, or where the rest of a body might be taken for a request
            assert not answers or not answers[-1][3] or b"Connection: close" in client.received
        await trial.end(client)

    @over_sockets
    @given(lines_of_requests(), CUTS)
    def run(requests: list[tuple[bytes, str, bytes]], cuts: list[int]) -> None:
        trial.play(play(requests, cuts))

    await trial.run(run)


#: what an answer can end with
ENDS = (b"\r\n\r\n", *(b"body-%d" % number for number in range(5)), b"}")
