"""Keeping in step with a client: it is read from and written to no faster than the other side of the gateway can go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.web import http

from twisted_vllm.http.net.write_coalescing import unsent_bytes

if TYPE_CHECKING:
    from twisted_vllm.http.server.site import GatewaySite

#: seconds in which a client must read something of what was written to it
STALL = 300.0


class FlowControlledConnection(http.HTTPChannel):
    """Twisted's channel with pauses that know why they are, and with an end to waiting for a client that does not read.

    Attributes:
        site: the factory that built the channel.
        deadline: when `expired` is called, in the reactor's seconds.
    """

    site: GatewaySite
    transport: Any
    write: Any
    send_now: Any
    deadline: float | None = None
    _networkProducer: Any
    _requestProducer: Any

    def __init__(self) -> None:
        super().__init__()
        self._lingering = False
        self._unsent = 0
        self._read_pauses: set[str] = set()

    def _set_deadline(self) -> None:
        """Set the deadline that fits what is awaited from the client."""
        raise NotImplementedError

    def _advance(self) -> None:
        """Answer what can be answered."""
        raise NotImplementedError

    # reading from the client

    def pause_reading(self, why: str) -> None:
        """Read no more from the client until `why` is over."""
        if not self._read_pauses:
            # in a tunnel, the end of what the client sends comes after all that it sent
            self.site.hangups.watch(self.transport, resets_only=why == "tunnel")
        self._read_pauses.add(why)
        self._networkProducer.pauseProducing()

    def resume_reading(self, why: str) -> None:
        """Read again, if nothing else forbids it."""
        if why in self._read_pauses:
            self._read_pauses.discard(why)
            if not self._read_pauses:
                self.site.hangups.forget(self.transport)
                self._networkProducer.resumeProducing()
                if not self._lingering:
                    self._set_deadline()

    def _end_pauses(self) -> None:
        """Forget why nothing is read; reading itself is the caller's."""
        if self._read_pauses:
            self._read_pauses.clear()
            self.site.hangups.forget(self.transport)

    # writing to the client

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register who produces the answer; it is paused at once where the client has not yet read what went before."""
        super().registerProducer(producer, streaming)
        if streaming and self._waitingForTransport:
            producer.pauseProducing()

    def pauseProducing(self) -> None:
        """The client reads slower than it is written to: stop whoever produces for it, and take no more requests."""
        if not self._waitingForTransport:
            self._waitingForTransport = True
            self._await_reading(STALL)
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        elif not self.requests:
            self.pause_reading("unread")

    def resumeProducing(self) -> None:
        """The client has read what was written."""
        self._waitingForTransport = False
        if not self._lingering:
            self._set_deadline()
        self.resume_reading("unread")
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        self._advance()

    def _give_up_unless_it_reads(self) -> None:
        """Cut the connection, unless the client has read since the last look: slowly is no fault, not at all is."""
        unsent = unsent_bytes(self.transport)
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self.deadline = self.site.sweeper.after(STALL)
        else:
            self.transport.abortConnection()

    def _close(self) -> None:
        """Close once everything was written; whoever neither reads nor closes is cut off."""
        self._lingering = True
        self._await_reading(STALL)
        self.loseConnection()

    def _await_reading(self, seconds: float) -> None:
        self._unsent = unsent_bytes(self.transport)
        self.deadline = self.site.sweeper.after(STALL if self._unsent else seconds)
