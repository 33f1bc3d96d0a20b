"""The simulator as a service of Twisted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from weakref import WeakSet

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime, IStreamServerEndpoint, ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Site

from twisted_vllm.simulator.resource import make_resource
from twisted_vllm.simulator.settings import SimulatorSettings

#: seconds after which an idle connection is closed, as in vLLM's uvicorn
KEEP_ALIVE = 5

DEFAULT_LISTEN = "tcp:8000:interface=127.0.0.1"


def simulator_service(
    reactor: IReactorTime, settings: SimulatorSettings, listen: Sequence[str] = ("tcp:0:interface=127.0.0.1",)
) -> SimulatorService:
    """Make the service of a simulated server.

    Args:
        reactor: where it runs.
        settings: what to simulate.
        listen: Twisted endpoint strings; the default is a free port on the loopback, see `SimulatorService.port`.

    Raises:
        ValueError: a string is not an endpoint.
    """
    return SimulatorService(reactor, settings, [serverFromString(reactor, text) for text in listen])


class SimulatorService(Service):
    """Listens while it runs. When it stops, it resets all connections.

    Attributes:
        engine: the state of the simulated server.
        ports: the ports that it listens on.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorTime, settings: SimulatorSettings, endpoints: Sequence[IStreamServerEndpoint]
    ) -> None:
        self.ports: list[IListeningPort] = []
        self._endpoints = endpoints
        resource = make_resource(settings, reactor)
        self.engine = resource.engine
        self._site = SimulatorSite(resource, reactor)
        self._started = False

    @property
    def port(self) -> int:
        """The first TCP port that it listens on.

        Raises:
            RuntimeError: it does not listen on a TCP port.
        """
        for port in self.ports:
            number = getattr(port.getHost(), "port", None)
            if isinstance(number, int):
                return number
        raise RuntimeError("the simulator does not listen on a TCP port now: start the service first")

    def privilegedStartService(self) -> None:
        """Listen, before twistd drops its privileges.

        Raises:
            CannotListenError: an address cannot be listened on.
        """
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        """Listen, unless `privilegedStartService` did."""
        super().startService()
        self._listen()

    def _listen(self) -> None:
        if self._started:
            return
        self._started = True
        starting, failures = True, []

        def failed(failure: Failure) -> None:
            if starting:
                failures.append(failure)
            else:
                self._log.failure("The simulator cannot listen on one of its addresses", failure)

        for endpoint in self._endpoints:
            endpoint.listen(self._site).addCallbacks(self.ports.append, failed)
        starting = False
        if failures:
            # An address in use fails at once: report it to the caller.
            self._close_ports()
            self._started = False
            failures[0].raiseException()

    def stopService(self) -> Deferred[None]:
        """Close the ports and every connection; the Deferred fires when the ports are closed."""
        super().stopService()
        self._started = False
        closed = self._close_ports()
        self._site.abort_connections()
        return closed

    def _close_ports(self) -> Deferred[None]:
        ports, self.ports = self.ports, []
        return gatherResults([maybeDeferred(port.stopListening) for port in ports]).addCallback(lambda _: None)


class SimulatorSite(Site):
    """A site that can reset its connections."""

    noisy = False
    # Only HTTP/1.1, as in vLLM; the default offers HTTP/2 on TLS.
    protocol = HTTPChannel  # type: ignore[assignment]  # Twisted's annotation knows only its own default

    def __init__(self, resource: IResource, reactor: IReactorTime) -> None:
        # The audio route parses its forms itself.
        super().__init__(resource, timeout=KEEP_ALIVE, reactor=reactor, parsePOSTFormSubmission=False)
        self._channels: WeakSet[HTTPChannel] = WeakSet()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make the protocol of a connection."""
        channel = super().buildProtocol(addr)
        if channel is not None:
            self._channels.add(channel)
        return channel

    def log(self, request: object) -> None:
        """Write no access log."""

    def abort_connections(self) -> None:
        """Reset every connection that is still open."""
        for channel in list(self._channels):
            # TCP, TLS and UNIX connections have it, and ignore it once they are closed.
            cast(ITCPTransport, channel.transport).abortConnection()
