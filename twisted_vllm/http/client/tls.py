"""TLS to servers: the files that the settings name, and the check of a server's certificate."""

from __future__ import annotations

from calendar import timegm
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from zope.interface import implementer

from twisted_vllm.config.describe import url_of
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.connect_errors import TlsFileError, certificate_fault, wrong_name

#: bytes of a file of certificates; the system's authorities are about 250 kB
MAX_FILE = 4_194_304


@attrs.frozen
class TlsFiles:
    """What the files of one `ServerTls` hold.

    Attributes:
        context: OpenSSL's context, made of them; two are equal if their files are.
        digest: a hash of their content, which tells whether they changed.
        authorities_end: when the last certificate of ``ssl_ca`` ends, in Unix seconds: from then on it vouches for no
            server. None without the setting.
        certificate_ends: when the first certificate of ``ssl_certificate`` ends, its chain included. None without one.
    """

    context: SSL.Context = attrs.field(eq=False)
    digest: bytes = b""
    authorities_end: float | None = attrs.field(default=None, eq=False)
    certificate_ends: float | None = attrs.field(default=None, eq=False)


def read_all(servers: Iterable[Server], directory: str = "") -> dict[ServerTls, TlsFiles]:
    """Read the files of all servers, which blocks for a few milliseconds. It may run in any thread.

    Args:
        servers: the servers.
        directory: where the names of files begin, unless they are absolute; empty for the working directory.

    Raises:
        ConfigError: files cannot be used; it contains a problem for each server.
    """
    found: dict[ServerTls, TlsFiles] = {}
    problems = []
    for server in servers:
        if server.tls and server.tls_options not in found:
            try:
                found[server.tls_options] = read_files(server.tls_options, directory)
            except TlsFileError as error:
                problems.append(Problem(url_of(server), str(error)))
    if problems:
        raise ConfigError(problems)
    return found


def read_files(options: ServerTls, directory: str = "") -> TlsFiles:
    """Read the files of one server's settings; see `read_all`.

    Raises:
        TlsFileError: one of them cannot be used.
    """
    context = CertificateOptions().getContext()
    context.set_info_callback(_note_request)
    digest = sha256()
    authorities_end = certificate_ends = None
    if options.ca_file is not None:
        file = Path(directory, options.ca_file)
        content, authorities = _certificates("ssl_ca", file)
        digest.update(content)
        authorities_end = max(each.not_valid_after_utc.timestamp() for each in authorities)
        context.load_verify_locations(str(file))
        store = context.get_cert_store()
        if store is not None:
            # what the operator names is trusted, also if it is no root
            store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    elif options.verify:
        context.set_default_verify_paths()
    if options.certificate_file is not None:
        file = Path(directory, options.certificate_file)
        content, certificates = _certificates("ssl_certificate", file)
        digest.update(content)
        certificate_ends = min(each.not_valid_after_utc.timestamp() for each in certificates)
        certificate, *chain = certificates
        context.use_certificate(certificate)
        for each in chain:
            context.add_extra_chain_cert(each)
        key_file = None if options.key_file is None else Path(directory, options.key_file)
        digest.update(_use_key(context, file, key_file))
    return TlsFiles(context, digest.digest(), authorities_end, certificate_ends)


def seconds_of(moment: bytes) -> float:
    """Return the Unix seconds of a moment in ASN.1's ``YYYYMMDDhhmmssZ`` (RFC 5280 §4.1.2.5.2).

    A server whose certificate is not checked may show anything: 0 for what is no moment, such as one in the year 0.
    """
    try:
        year, *others = int(moment[:4]), *(int(moment[at : at + 2]) for at in range(4, 14, 2))
        return float(timegm((year, *others)))
    except ValueError:
        return 0.0


def _note_request(connection: SSL.Connection, where: int, _: int) -> None:
    """Note that the server asks for a certificate: many close the connection without a word if they get none."""
    if where == SSL.SSL_CB_CONNECT_LOOP and b"certificate request" in connection.get_state_string():
        # Twisted's data of a connection is its TLS protocol
        connection.get_app_data().wrappedProtocol.certificate_wanted = True


def _read(setting: str, file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise TlsFileError(f"{setting}: the file {file} cannot be read ({error.strerror or error})") from None
    except ValueError:
        raise TlsFileError(f"{setting}: no file can have this name") from None
    if len(content) > MAX_FILE:
        raise TlsFileError(f"{setting}: the file {file} is over {MAX_FILE} bytes")
    return content


def _certificates(setting: str, file: Path) -> tuple[bytes, list[x509.Certificate]]:
    content = _read(setting, file)
    try:
        return content, x509.load_pem_x509_certificates(content)
    except ValueError:
        raise TlsFileError(f"{setting}: the file {file} holds no certificate in PEM") from None


def _use_key(context: SSL.Context, certificate_file: Path, key_file: Path | None) -> bytes:
    """Use the private key; return what was read. OpenSSL itself would ask the terminal for the password of one."""
    setting = "ssl_certificate" if key_file is None else "ssl_key"
    file = certificate_file if key_file is None else key_file
    content = _read(setting, file)
    try:
        key: Any = load_pem_private_key(content, None)
    except TypeError:
        raise TlsFileError(f"{setting}: the key in {file} is encrypted (write it without a password)") from None
    except ValueError:
        hint = "" if key_file is not None else " (write ssl_key if it is in another file)"
        raise TlsFileError(f"{setting}: the file {file} holds no private key in PEM{hint}") from None
    try:
        context.use_privatekey(key)
        context.check_privatekey()
    except (SSL.Error, TypeError):
        raise TlsFileError(f"{setting}: the key in {file} is not that of the certificate") from None
    return content


@implementer(IOpenSSLClientConnectionCreator)
class ServerTlsCreator:
    """Makes the TLS connections to one server, and checks its certificate.

    The application's protocol is told what is wrong with the certificate (its attribute ``certificate_fault``), and
    that the server asks for one (``certificate_wanted``).

    Attributes:
        context: OpenSSL's context, which may be replaced.
        not_after: when the server's certificate ends, as it was shown at the last handshake, in ASN.1's
            ``YYYYMMDDhhmmssZ``; None before the first one.
    """

    _log = Logger()

    def __init__(self, context: SSL.Context, host: str, *, verify: bool) -> None:
        """Create it.

        Args:
            context: as `read_files` makes it.
            host: the name or address that the certificate must be for.
            verify: whether the certificate is checked at all.
        """
        self.context = context
        self.not_after: bytes | None = None
        self._host = host
        self._is_address = isIPAddress(host) or isIPv6Address(host)
        self._identity = IPAddress_ID(host) if self._is_address else DNS_ID(host.rstrip("."))
        self._verify = verify

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Return a new connection."""
        connection = SSL.Connection(self.context, None)
        connection.set_app_data(tlsProtocol)
        if not self._is_address:
            connection.set_tlsext_host_name(self._host.rstrip(".").encode("ascii"))
        if self._verify:
            wanted = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            connection.set_verify(wanted, self._check)
        else:
            connection.set_verify(SSL.VERIFY_NONE, self._note)
        return connection

    def _note(self, connection: SSL.Connection, certificate: X509, code: int, depth: int, is_valid: int) -> bool:
        """Note when the certificate ends, and accept it."""
        if not depth:
            self.not_after = certificate.get_notAfter()
        return True

    def _check(self, connection: SSL.Connection, certificate: X509, code: int, depth: int, is_valid: int) -> bool:
        if not depth:
            self.not_after = certificate.get_notAfter()
        try:
            fault = self._fault(certificate, code, depth, is_valid)
            if fault:
                connection.get_app_data().wrappedProtocol.certificate_fault = fault
            return not fault
        except Exception:
            # OpenSSL would drop it
            self._log.failure("The certificate of a server could not be checked")
            return False

    def _fault(self, certificate: X509, code: int, depth: int, is_valid: int) -> str:
        if not is_valid:
            return certificate_fault(code, certificate.to_cryptography())
        if depth:
            return ""
        try:
            verify_service_identity(extract_patterns(certificate), [self._identity], [])
        except VerificationError:
            return wrong_name(self._host, certificate.to_cryptography())
        return ""
