"""The simulator as a service: its listening ports, and the connections that end with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakSet

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime, IStreamServerEndpoint, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.server import Site

from twisted_vllm.simulator.resource import make_resource
from twisted_vllm.simulator.settings import SimulatorSettings

#: seconds after which an idle connection is closed, as uvicorn below vLLM does
KEEP_ALIVE = 5

DEFAULT_LISTEN = "tcp:8000:interface=127.0.0.1"


def simulator_service(
    reactor: IReactorTime, settings: SimulatorSettings, listen: Sequence[str] = ("tcp:0:interface=127.0.0.1",)
) -> SimulatorService:
    """Make the service of a simulated server.

    Args:
        reactor: where it runs.
        settings: what to be.
        listen: Twisted endpoint strings; the default is a free port on loopback, which ``port`` tells.

    Raises:
        ValueError: a string describes no endpoint.
    """
    return SimulatorService(reactor, settings, [serverFromString(reactor, text) for text in listen])


class SimulatorService(Service):
    """Listens while it runs; when it stops, so do its connections and what runs on them.

    Attributes:
        ports: the listening ports, once they do.
    """

    def __init__(
        self, reactor: IReactorTime, settings: SimulatorSettings, endpoints: Sequence[IStreamServerEndpoint]
    ) -> None:
        self.ports: list[IListeningPort] = []
        self._endpoints = endpoints
        self._site = _SimulatorSite(make_resource(settings, reactor), reactor)
        self._listening: Deferred[None] | None = None

    @property
    def port(self) -> int:
        """The first TCP port that it listens on.

        Raises:
            RuntimeError: it listens on none now.
        """
        for port in self.ports:
            number = getattr(port.getHost(), "port", None)
            if isinstance(number, int):
                return number
        raise RuntimeError("the simulator does not listen on a TCP port now: start the service first")

    def privilegedStartService(self) -> None:
        """Listen, before twistd gives up the rights to low ports.

        Raises:
            CannotListenError: an address cannot be had; twistd ends with it.
        """
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        """Listen, unless that was done."""
        super().startService()
        self._listen()

    def _listen(self) -> None:
        if self._listening is not None:
            return
        failures: list[Failure] = []
        waiting = [endpoint.listen(self._site).addCallback(self.ports.append) for endpoint in self._endpoints]
        self._listening = gatherResults(waiting, consumeErrors=True).addCallbacks(lambda _: None, failures.append)
        if failures:
            # endpoints fail at once where the address is taken: say so to who started us
            self._close_ports()
            self._listening = None
            failures[0].value.subFailure.raiseException()

    def stopService(self) -> Deferred[None]:
        """Close the ports and every connection; the Deferred fires when the ports are closed."""
        super().stopService()
        self._listening = None
        closed = self._close_ports()
        self._site.abort_connections()
        return closed

    def _close_ports(self) -> Deferred[None]:
        ports, self.ports = self.ports, []
        stopped = [port.stopListening() or succeed(None) for port in ports]
        return gatherResults(stopped).addCallback(lambda _: None)


class _SimulatorSite(Site):
    noisy = False

    def __init__(self, resource: Any, reactor: IReactorTime) -> None:
        # forms are left alone: the audio route reads its own
        super().__init__(resource, timeout=KEEP_ALIVE, reactor=reactor, parsePOSTFormSubmission=False)
        self._channels: WeakSet[Protocol] = WeakSet()

    def buildProtocol(self, addr: IAddress) -> Protocol | None:
        channel = cast("Protocol | None", super().buildProtocol(addr))
        if channel is not None:
            self._channels.add(channel)
        return channel

    def abort_connections(self) -> None:
        for channel in list(self._channels):
            transport = channel.transport
            if ITCPTransport.providedBy(transport):
                transport.abortConnection()
