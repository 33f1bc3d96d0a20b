"""Collects a body that must be known before its request is admitted, and reads it when it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.errors import GatewayError
from twisted_vllm.field_policy.policy import FieldPolicy
from twisted_vllm.http.net.bounded_turns import Job
from twisted_vllm.http.server.held_bodies import SMALL_BODY
from twisted_vllm.http.server.request import GatewayRequest

#: a body over this size in bytes, with more commas than this, may take more than a millisecond. Each value but the
#: first of an object or a list has a comma
LONG_BODY, LONG_MARKS = 2_048, 200

#: A larger JSON body is read at once too, up to this size in bytes, if it has at most so many commas, brackets and
#: braces, and so many backslashes. That takes less than 20 ms, and a tenth of the time that reading in steps takes.
QUICK_BODY = 2_097_152
QUICK_MARKS, QUICK_ESCAPES = 6_144, 65_536

#: runs the steps of the work of a request's key
Work = Callable[[Iterator[Any]], Job]


def takes_long(body: bytes) -> bool:
    """Return whether a body of at most `SMALL_BODY` bytes may take more than a millisecond to read."""
    return len(body) > LONG_BODY and body.count(b",") > LONG_MARKS


class BodyCollector:
    """Collects one body. It is its request's `Work` meanwhile."""

    def __init__(
        self,
        request: GatewayRequest,
        limit: int,
        done: Callable[[bytes | HeldBody], None],
        *,
        work: Work,
        is_json: bool,
        policy: FieldPolicy | None,
    ) -> None:
        """Make the collector.

        Args:
            request: the request.
            limit: the maximum number of bytes.
            done: called once with the complete body, as bytes if it can be read at once.
            work: runs the steps in which a body that takes long is read.
            is_json: whether to read it.
            policy: which fields it may have; None if any.
        """
        self._request = request
        self._limit = limit
        self._done = done
        self._work = work
        self._is_json = is_json
        self._policy = policy
        self._body = HeldBody(is_json=is_json)
        self._is_quick = True
        self._marks = self._escapes = 0
        self._job: Job | None = None

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
        job, self._job = self._job, None
        self._body = HeldBody(is_json=False)
        if job is not None:
            job.stop()

    def _piece(self, data: bytes, last: bool) -> None:
        body = self._body
        body.append(data)
        if len(body) > self._limit:
            self._refuse(self._request.too_large(self._limit))
            return
        self._is_quick = self._is_quick and self._stays_quick(data)
        if not last:
            return
        if not self._is_json or (len(body) <= SMALL_BODY and self._marks <= LONG_MARKS):
            self._finish()
        else:
            self._job = self._work(self._read_at_once() if self._is_quick else self._read())

    def _stays_quick(self, data: bytes) -> bool:
        """Return whether the body can still be read at once, with its next piece."""
        size = len(self._body)
        if not self._is_json:
            return size <= SMALL_BODY
        self._marks += data.count(b",") + data.count(b"[") + data.count(b"{")
        self._escapes += data.count(b"\\")
        few = self._marks <= QUICK_MARKS and self._escapes <= QUICK_ESCAPES
        return size <= SMALL_BODY or (few and size <= QUICK_BODY)

    def _read_at_once(self) -> Iterator[None]:
        """Give the body on in a step of its own: others may be complete in the same turn."""
        self._job = None
        self._finish()
        yield

    def _read(self) -> Iterator[None]:
        """Read and check the body in steps."""
        body = self._body
        for piece in body.rope():
            if not body.reads:
                break
            yield from body.read(piece)
            yield
        yield from body.check(self._policy)
        self._job = None
        self._finish()

    def _finish(self) -> None:
        body = self._body
        self._request.work = None
        self._done(body.whole() if self._is_quick else body)
