"""Looks through the requests in flight, and tells what each is doing. The requests themselves do nothing for it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred

from twisted_vllm.http.server.connection import DownstreamConnection
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.observability.request_states import (
    PAUSED,
    PREPARING,
    QUEUED,
    READING_BODY,
    STREAMING,
    TUNNEL,
    WAITING,
    State,
)
from twisted_vllm.proxy.fan_out_work import FanOutWork
from twisted_vllm.proxy.pending_step import PendingStep
from twisted_vllm.proxy.relay import Relay

#: the status of an answer that begins a tunnel
SWITCHED = 101

#: connections that are looked at in one step; to look at one takes about 1 µs
STEP = 500


def in_batches(connections: Iterable[DownstreamConnection], size: int = STEP) -> Iterator[list[GatewayRequest]]:
    """Yield the requests for vLLM that are in flight, those of some connections at a time.

    Between two batches, the reactor may serve others: a batch has what is in flight when it is made.

    Args:
        connections: the client connections.
        size: how many connections are looked at for one batch.
    """
    remaining = iter(list(connections))
    while some := list(islice(remaining, size)):
        yield [
            request
            for connection in some
            for request in connection.requests
            if request.context.authorization is not None
        ]


def state_of(request: GatewayRequest, queued: Container[Deferred[Any]]) -> State:
    """Return what a request in flight is doing.

    Args:
        request: the request.
        queued: what the requests in the queues wait for, as `Dispatcher.turns`.
    """
    # most have begun to answer; what is looked at of each object costs, because none is in the processor's cache
    context = request.context
    if context.first_byte is not None:
        if context.status == SWITCHED:
            return TUNNEL
        if context.meter is not None and not context.meter.paused:
            # it never was
            return STREAMING
        work = request.work
        return PAUSED if isinstance(work, Relay) and work.paused else STREAMING
    work = request.work
    if isinstance(work, PendingStep):
        return QUEUED if work.awaited in queued else PREPARING
    if not request.body_complete:
        return READING_BODY
    return WAITING if isinstance(work, (Relay, FanOutWork)) else PREPARING
