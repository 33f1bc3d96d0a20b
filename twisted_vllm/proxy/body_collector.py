"""Collects a body that must be known before its request is admitted, and reads it while it arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import CooperativeTask

from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.errors import GatewayError
from twisted_vllm.field_policy.policy import FieldPolicy
from twisted_vllm.http.net.bounded_turns import Cooperate
from twisted_vllm.http.server.held_bodies import SMALL_BODY
from twisted_vllm.http.server.request import GatewayRequest

#: a body over this size in bytes, with more commas and braces than this, may take some milliseconds
LONG_BODY, LONG_MARKS = 16_384, 2_048

#: A larger JSON body is read at once too, up to this size in bytes, if it has at most so many commas, brackets and
#: braces, and so many backslashes. That takes less than 20 ms, and a tenth of the time that reading in steps takes.
QUICK_BODY = 2_097_152
QUICK_MARKS, QUICK_ESCAPES = 6_144, 65_536

#: bytes that have arrived and are not read yet; with more the client waits
MAX_UNREAD = 262_144


def takes_long(body: bytes) -> bool:
    """Return whether a body of at most `SMALL_BODY` bytes may take some milliseconds to read."""
    return len(body) > LONG_BODY and body.count(b",") + body.count(b"{") > LONG_MARKS


class BodyCollector:
    """Collects one body. It is its request's `Work` meanwhile."""

    def __init__(
        self,
        request: GatewayRequest,
        limit: int,
        done: Callable[[bytes | HeldBody], None],
        *,
        cooperate: Cooperate,
        is_json: bool,
        policy: FieldPolicy | None,
    ) -> None:
        """Make the collector.

        Args:
            request: the request.
            limit: the maximum number of bytes.
            done: called once with the complete body, as bytes if it can be read at once.
            cooperate: runs the steps in which a larger body is read.
            is_json: whether to read it.
            policy: which fields it may have; None if any.
        """
        self._request = request
        self._limit = limit
        self._done = done
        self._cooperate = cooperate
        self._is_json = is_json
        self._policy = policy
        self._body = HeldBody(is_json=is_json)
        self._unread: deque[bytes] = deque()
        self._unread_size = 0
        self._complete = self._paused = False
        self._is_quick = True
        self._marks = self._escapes = 0
        self._task: CooperativeTask[Any] | None = None
        self._waiting: Deferred[None] | None = None

    def start(self) -> None:
        """Ask for the body once there is room for it, or answer 413 if it is declared too large."""
        request = self._request
        request.work = self
        if request.body_length is not None and request.body_length > self._limit:
            self._refuse(request.too_large(self._limit))
        else:
            request.await_room(self._limit, self._ask, self._refuse)

    def _ask(self) -> None:
        self._request.ask_for_body()
        self._request.stream_body(self._piece)

    def _refuse(self, error: GatewayError) -> None:
        self._request.work = None
        self.cancel()
        self._request.answer(error)

    def cancel(self) -> None:
        """The client has disconnected: drop the body."""
        task, self._task = self._task, None
        self._unread.clear()
        self._body = HeldBody(is_json=False)
        if task is not None:
            task.stop()

    def _piece(self, data: bytes, last: bool) -> None:
        body = self._body
        body.append(data)
        if len(body) > self._limit:
            self._refuse(self._request.too_large(self._limit))
            return
        self._complete = last
        self._is_quick = self._is_quick and self._stays_quick(data)
        if last and (self._is_quick or not self._is_json):
            if len(body) <= SMALL_BODY or not self._is_json:
                self._finish()
            else:
                self._task = self._cooperate(self._read_at_once())
            return
        if not self._is_json:
            return
        self._unread.append(data)
        self._unread_size += len(data)
        if self._is_quick:
            # it may end so
            return
        if self._unread_size > MAX_UNREAD and not self._paused:
            self._paused = True
            self._request.pause_body()
            if self._request.room is not None:
                self._request.room.stop_timing()
        if self._task is None:
            self._task = self._cooperate(self._read())
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    def _stays_quick(self, data: bytes) -> bool:
        """Return whether the body can still be read at once, with its next piece."""
        size = len(self._body)
        if not self._is_json:
            return size <= SMALL_BODY
        self._marks += data.count(b",") + data.count(b"[") + data.count(b"{")
        self._escapes += data.count(b"\\")
        few = self._marks <= QUICK_MARKS and self._escapes <= QUICK_ESCAPES
        return size <= SMALL_BODY or (few and size <= QUICK_BODY)

    def _read_at_once(self) -> Iterator[Any]:
        """Give the body on in a step of its own: others may be complete in the same turn."""
        self._task = None
        self._finish()
        yield

    def _read(self) -> Iterator[Any]:
        """Read what has arrived, and wait for more, until the body is complete; then check it."""
        body, unread = self._body, self._unread
        while unread or not self._complete:
            if not unread:
                self._waiting = Deferred()
                yield self._waiting
                continue
            data = unread.popleft()
            yield from body.read(data)
            self._unread_size -= len(data)
            if self._paused and self._unread_size <= MAX_UNREAD // 2:
                self._paused = False
                self._request.resume_body()
            yield
        yield from body.check(self._policy)
        self._task = None
        self._finish()

    def _finish(self) -> None:
        body = self._body
        self._request.work = None
        self._done(body.whole() if self._is_quick else body)
