"""Syslog and the journal: messages over a socket, in a thread of their own."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Sequence
from errno import EMSGSIZE, ENOBUFS

from zope.interface import implementer

from twisted_vllm.config.sinks import SyslogAddress
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination

#: how long a connection, or the writing of a batch, may take, in seconds
TIMEOUT = 10.0
#: the most bytes of a message in a datagram: UDP over IPv4 carries 65,507
MAX_DATAGRAM = 65_000


class _SocketDestination:
    """Has one socket, from its first batch on and until an error."""

    _socket: socket.socket | None = None

    def close(self) -> None:
        """Close the connection."""
        used, self._socket = self._socket, None
        if used is not None:
            used.close()


@implementer(IBlockingDestination)
class SyslogDestination(_SocketDestination):
    """Sends messages to syslog: as datagrams (RFC 5426), or over TCP or TLS with their lengths (RFC 6587, 5425)."""

    def __init__(self, address: SyslogAddress, ca_file: str | None = None) -> None:
        """Set up; it connects with the first batch.

        Args:
            address: where syslog listens.
            ca_file: a file of certificates (PEM) that is trusted in place of the system's authorities.
        """
        self._address = address
        self._ca_file = ca_file

    def deliver(self, batch: Sequence[bytes]) -> None:
        """Send a batch. After an error, messages before it may be sent a second time."""
        try:
            used = self._socket
            if used is None:
                used = self._socket = self._connect()
            elif self._address.transport in ("tcp", "tls") and _is_closed(used):
                # else the kernel would take a batch that nobody reads
                self.close()
                used = self._socket = self._connect()
            if self._address.transport in ("unix", "udp"):
                for message in batch:
                    _send_datagram(used, message)
            else:
                used.sendall(b"".join([b"%d %b" % (len(message), message) for message in batch]))
        except OSError as error:
            self.close()
            raise DeliveryFailed(reason_of(error), retryable=True) from None

    def _connect(self) -> socket.socket:
        address = self._address
        if address.transport == "unix":
            return connect_unix(address.host)
        if address.transport == "udp":
            family, kind, protocol, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(TIMEOUT)
                made.connect(where)
            except OSError:
                made.close()
                raise
            return made
        made = socket.create_connection((address.host, address.port), TIMEOUT)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if address.transport == "tls":
                context = ssl.create_default_context(cafile=self._ca_file)
                made = context.wrap_socket(made, server_hostname=address.host)
        except OSError:
            made.close()
            raise
        return made


@implementer(IBlockingDestination)
class JournalDestination(_SocketDestination):
    """Sends entries to the journal by its native protocol."""

    def __init__(self, path: str) -> None:
        """Set up; it connects with the first batch.

        Args:
            path: the socket of the journal.
        """
        self._path = path

    def deliver(self, batch: Sequence[bytes]) -> None:
        """Send a batch, an entry in each datagram. After an error, entries before it may be sent a second time."""
        try:
            if self._socket is None:
                self._socket = connect_unix(self._path)
            for entry in batch:
                try:
                    self._socket.send(entry)
                except OSError as error:
                    if error.errno not in (EMSGSIZE, ENOBUFS):
                        raise
                    self._send_file(self._socket, entry)
        except OSError as error:
            self.close()
            raise DeliveryFailed(reason_of(error), retryable=True) from None

    def _send_file(self, used: socket.socket, entry: bytes) -> None:
        """Send an entry that is too large for a datagram, as a sealed file in memory."""
        descriptor = os.memfd_create("journal-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            rest = memoryview(entry)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            _seal(descriptor)
            socket.send_fds(used, [b""], [descriptor])
        finally:
            os.close(descriptor)


def connect_unix(path: str) -> socket.socket:
    """Return a datagram socket that sends to a path.

    Raises:
        OSError: there is none.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.settimeout(TIMEOUT)
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


def reason_of(error: OSError) -> str:
    """Return why a socket failed, in words."""
    if isinstance(error, TimeoutError):
        return f"it did not take a message within {TIMEOUT:g} s"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason}"
    return (error.strerror or type(error).__name__).lower()


def _is_closed(used: socket.socket) -> bool:
    """Return whether the other side has closed a connection; syslog says nothing else."""
    used.settimeout(0)
    try:
        return not used.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        used.settimeout(TIMEOUT)


def _send_datagram(used: socket.socket, message: bytes) -> None:
    try:
        used.send(message[:MAX_DATAGRAM])
    except OSError as error:
        if error.errno != EMSGSIZE:
            raise
        # a smaller socket buffer, or a path that carries less
        used.send(message[:2048])


def _seal(descriptor: int) -> None:
    from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl

    fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL)
