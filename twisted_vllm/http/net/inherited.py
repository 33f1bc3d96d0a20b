"""Listening sockets that one process opens and others accept from.

The process that opens them keeps them: while nobody accepts, clients wait in the kernel, and none is refused. Where
several processes accept at one TCP address, each has a socket of its own there (``SO_REUSEPORT``, socket(7)): the
kernel shares clients out evenly, which it does not for one socket of all. Sockets of ``unix:`` and ``systemd:`` are
shared.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.internet import tcp, unix
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure

from twisted_vllm.http.net import listening
from twisted_vllm.http.net.listening import TcpPort, TlsFactory, UnixPort
from twisted_vllm.http.net.shortages import Shortages


@attrs.frozen
class OpenSockets:
    """The sockets of one address.

    Attributes:
        text: the endpoint's string.
        family: the family of the addresses, such as ``socket.AF_INET``.
        descriptors: a socket for each slot in their order, or one for all.
        name: the address, for the log.
        close: closes them.
    """

    text: str
    family: int
    descriptors: tuple[int, ...]
    name: str
    close: Callable[[], Any]

    def of_slot(self, slot: int) -> int:
        """Return the socket of a slot; slots begin with 1."""
        return self.descriptors[slot - 1 if len(self.descriptors) > 1 else 0]


def open_sockets(reactor: Any, text: str, slots: int) -> OpenSockets:
    """Open the sockets of an endpoint; nothing is accepted from them.

    Args:
        reactor: of a UNIX socket, whose file is removed when it is closed.
        text: the endpoint's string.
        slots: how many processes will accept.

    Raises:
        CannotListenError: the address cannot be listened on.
    """
    opening = _Opening(reactor, text, slots)
    failures: list[Failure] = []
    serverFromString(opening, text).listen(Factory()).addErrback(failures.append)
    if failures:
        failures[0].raiseException()
    assert opening.opened is not None
    return opening.opened


class _Opening:
    """The reactor of an endpoint that opens sockets, and does not accept from them."""

    def __init__(self, reactor: Any, text: str, slots: int) -> None:
        self.opened: OpenSockets | None = None
        self._reactor = reactor
        self._text = text
        self._slots = slots

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> None:
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        opened: list[socket.socket] = []
        try:
            # alone first: with SO_REUSEPORT, the address of a gateway that runs already would be shared with it
            alone = _bound(family, interface, port, shared=False)
            port = alone.getsockname()[1]
            alone.close()
            while len(opened) < self._slots:
                opened.append(_bound(family, interface, port, shared=True))
            for each in opened:
                each.listen(backlog)
        except OSError as error:
            _close(opened)
            raise CannotListenError(interface, port, error) from None
        host = f"[{interface}]" if ":" in interface else interface or "0.0.0.0"
        descriptors = tuple(each.fileno() for each in opened)
        self.opened = OpenSockets(self._text, family, descriptors, f"{host}:{port}", lambda: _close(opened))

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> None:
        # the processes that accept speak TLS
        self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(self, address: bytes, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0) -> None:
        port = unix.Port(address, factory, backlog, mode, self._reactor, wantPID)
        port.startListening()
        port.stopReading()
        name = os.fsdecode(address)
        self.opened = OpenSockets(self._text, socket.AF_UNIX, (port.fileno(),), name, port.stopListening)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> None:
        # the endpoint closes its own
        inherited = socket.socket(addressFamily, socket.SOCK_STREAM, fileno=os.dup(fileDescriptor))
        address: Any = inherited.getsockname()
        if isinstance(address, tuple):
            name = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        else:
            name = os.fsdecode(address)
        self.opened = OpenSockets(self._text, addressFamily, (inherited.fileno(),), name, inherited.close)


def _bound(family: int, interface: str, port: int, *, shared: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # as Twisted has it: "::" is for IPv4 clients as well
            address: Any = socket.getaddrinfo(interface, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
            opened.bind(address[0][4])
        else:
            opened.bind((interface, port))
    except OSError:
        opened.close()
        raise
    return opened


def _close(opened: Sequence[socket.socket]) -> None:
    for each in opened:
        each.close()


class Gate(Protocol):
    """Decides which connections wait before they are served."""

    def holds(self, port: Any, host: str, serve: Callable[[], None]) -> bool:
        """Have a connection wait, if it must; return whether it does.

        Args:
            port: where it was accepted.
            host: the client's address, empty if it has none.
            serve: serves it.
        """


class _Accepting(listening._Accepting):
    """Accepts from a socket of another process, which goes on without this one.

    Attributes:
        gate: has connections wait.
    """

    gate: Gate
    _shouldShutdown = False

    def _serve(self, connected: socket.socket, address: Any) -> None:
        """Serve the connection, at once or when the gate lets it in."""
        serve = partial(super()._serve, connected, address)
        # an IPv6 address without its scope
        host = address[0].partition("%")[0] if isinstance(address, tuple) else ""
        if not self.gate.holds(self, host, serve):
            serve()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End, and leave the socket's file to the process that opened it."""
        self._spare.free()
        # not those between: they remove the file of a UNIX socket
        tcp.Port.connectionLost(self, reason)


class InheritedTcpPort(_Accepting, TcpPort):
    """A TCP port on a socket of another process."""


class InheritedUnixPort(_Accepting, UnixPort):
    """A UNIX port on a socket of another process."""

    def startListening(self) -> None:
        """Accept. The mode of the socket's file stays as it is: it may belong to another user by now."""
        path, self._bindPath = self._bindPath, b"\0"
        try:
            super().startListening()
        finally:
            self._bindPath = path


def listen_inherited(
    reactor: Any,
    sockets: Any,
    shortages: Shortages,
    gate: Gate,
    descriptor: int,
    family: int,
    backlog: int,
    factory: Any,
) -> IListeningPort:
    """Accept from a socket of another process.

    Args:
        reactor: of UNIX ports, and of connections with TLS.
        sockets: the reactor of other TCP ports.
        shortages: is told when there is no descriptor for a connection.
        gate: has connections wait.
        descriptor: the socket, which stays open.
        family: the family of its address.
        backlog: the connections that may wait.
        factory: of the connections; a `TlsFactory` speaks TLS.
    """
    port: Any
    if family == socket.AF_UNIX:
        port = InheritedUnixPort._fromListeningDescriptor(reactor, descriptor, factory)
    else:
        owner = reactor if isinstance(factory, TlsFactory) else sockets
        port = InheritedTcpPort._fromListeningDescriptor(owner, descriptor, family, factory)
    port.backlog = backlog
    port.shortages = shortages
    port.gate = gate
    port.startListening()
    found: IListeningPort = port
    return found


class InheritedListening:
    """The reactor of endpoints whose sockets another process has opened: their ports accept from those."""

    def __init__(
        self, reactor: Any, sockets: Any, shortages: Shortages, gate: Gate, descriptor: int, family: int
    ) -> None:
        """Set up; the arguments are those of `listen_inherited`."""
        self._reactor = reactor
        self._sockets = sockets
        self._shortages = shortages
        self._gate = gate
        self._descriptor = descriptor
        self._family = family

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        """Accept connections."""
        return self._listen(factory, backlog)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """Accept connections with TLS."""
        return self._listen(TlsFactory(contextFactory, False, factory), backlog)

    def listenUNIX(
        self, address: bytes, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> IListeningPort:
        """Accept connections."""
        return self._listen(factory, backlog)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> IListeningPort:
        """Accept connections."""
        return self._listen(factory, socket.SOMAXCONN)

    def _listen(self, factory: Any, backlog: int) -> IListeningPort:
        return listen_inherited(
            self._reactor,
            self._sockets,
            self._shortages,
            self._gate,
            self._descriptor,
            self._family,
            backlog,
            factory,
        )
