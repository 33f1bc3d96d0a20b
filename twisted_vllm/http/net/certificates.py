"""The certificates of listening ports, which can be replaced while the ports listen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL.SSL import Connection
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from zope.interface import implementer

from twisted_vllm.config.listen import below, is_tls
from twisted_vllm.config.problems import ConfigError, Problem


@implementer(IOpenSSLServerConnectionCreator)
class Certificate:
    """The certificate and key of one port. A handshake gets those that are in use when it begins.

    Attributes:
        listener: where the port listens, such as ``*:443``.
        ends: when it, or a certificate of its chain, ends, in Unix seconds.
    """

    def __init__(self, options: Any, listener: str = "") -> None:
        """Use the options of the port's endpoint, a `CertificateOptions`."""
        self.listener = listener
        self.reconfigure(options)

    def reconfigure(self, options: Any) -> None:
        """Use another certificate for new connections; open ones keep theirs."""
        self._options = options
        self._context = options.getContext()
        chain = [options.certificate, *(options.extraCertChain or ())]
        self.ends = min(each.to_cryptography().not_valid_after_utc.timestamp() for each in chain)

    def serverConnectionForTLS(self, protocol: object) -> Connection:
        """Return the TLS connection of a client."""
        return Connection(self._context, None)

    def differs(self, options: Any) -> bool:
        """Return whether other options have another certificate or key, or send another chain."""
        return _identity(self._options) != _identity(options)


class Listeners:
    """Makes the endpoints to listen on, and replaces the certificates of those with TLS.

    Only Twisted's own ``ssl:`` endpoints are known, also below ``haproxy:``.
    """

    def __init__(self, reactor: Any, directory: str) -> None:
        """Set up.

        Args:
            reactor: listens.
            directory: where the names of files begin, unless they are absolute.
        """
        self._reactor = reactor
        self._directory = directory
        self._certificates: list[Certificate] = []

    @property
    def certificates(self) -> Sequence[Certificate]:
        """The certificates of the ports that listen with TLS."""
        return self._certificates

    def endpoint(self, text: str, reactor: Any = None) -> IStreamServerEndpoint:
        """Return the endpoint that a string describes.

        Args:
            text: the string.
            reactor: listens in place of the usual one.

        Raises:
            ValueError: it is none.
        """
        reactor = reactor or self._reactor
        if is_tls(text):
            reactor = _Listening(reactor, self._certificates)
        endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
        return endpoint

    def prepare(self, texts: Sequence[str]) -> tuple[bool, Callable[[], None]]:
        """Read the certificates again, in any thread.

        Args:
            texts: what is listened on, in the order of `endpoint`; the names of files may be others.

        Returns:
            Whether any differs, and what puts them into use, which cannot fail.

        Raises:
            ConfigError: one of the files cannot be used.
        """
        found: list[Any] = []
        problems = []
        for text in filter(is_tls, texts):
            try:
                serverFromString(_Reading(found), below(text, self._directory)).listen(Factory())
                found[-1].getContext()
            except Exception as error:  # OpenSSL's and the parser's errors have no common root
                problems.append(Problem("passthrough.listen", f"the certificate of {text!r} cannot be used: {error}"))
        if problems:
            raise ConfigError(problems)
        # a port that could not listen has none
        pairs = list(zip(self._certificates, found, strict=False))

        def apply() -> None:
            for certificate, options in pairs:
                certificate.reconfigure(options)

        return any(certificate.differs(options) for certificate, options in pairs), apply


class _Listening:
    """The reactor of an endpoint that listens with TLS: its port gets a `Certificate`."""

    def __init__(self, reactor: Any, certificates: list[Certificate]) -> None:
        self._reactor = reactor
        self._certificates = certificates

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, **options: Any) -> Any:
        certificate = Certificate(contextFactory, f"{options.get('interface') or '*'}:{port}")
        listening = self._reactor.listenSSL(port, factory, contextFactory=certificate, **options)
        self._certificates.append(certificate)
        return listening


class _Reading:
    """The reactor of an endpoint that does not listen: only its certificate is wanted."""

    def __init__(self, found: list[Any]) -> None:
        self._found = found

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, **options: Any) -> None:
        self._found.append(contextFactory)


def _identity(options: Any) -> tuple[bytes, ...]:
    chain = [options.certificate, *(options.extraCertChain or ())]
    return tuple(each.digest("sha256") for each in chain)
