"""One request's answer on its way out: the waiting, the writing, the faults, and the counting at its end."""

from __future__ import annotations

from http import HTTPStatus
from itertools import islice

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import Request

from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.faults import Ending, Faults
from twisted_vllm.simulator.pace import PacedEvents
from twisted_vllm.simulator.refusals import Refusal
from twisted_vllm.simulator.replies import DONE, EVENT_STREAM, Answer, EventStream, Header, Reply

SERVER = b"twisted-vllm-simulator"

_GARBAGE = b"\x00\xff this is not HTTP \r\n\r\n"


def simulated_failure(status: int) -> Refusal:
    """Return the error that ``x-simulate: status=`` answers with."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return Refusal(f"Simulated failure: {status} {phrase}", status=status, type=f"{phrase.replace(' ', '')}Error")


class Exchange:
    """Answers one request.

    Args:
        clock: tells the time and calls later.
        engine: is told what runs and what is done.
        request: the request to answer.
        reply: the answer.
        faults: what is to go wrong with it.
    """

    def __init__(self, clock: IReactorTime, engine: Engine, request: Request, reply: Reply, faults: Faults) -> None:
        self._clock = clock
        self._engine = engine
        self._request = request
        self._reply = reply
        self._faults = faults
        self._producer: PacedEvents | None = None
        self._timer = None
        self._gone = False

    def start(self) -> None:
        """Begin to answer; the rest happens as time passes and the connection takes it."""
        self._request.notifyFinish().addCallbacks(self._finished, self._disconnected)
        if self._reply.work is not None:
            self._engine.begin(self._reply.work)
        self._later(self._faults.slow_head, self._answer)

    def _later(self, seconds: float, call: object) -> None:
        ...
