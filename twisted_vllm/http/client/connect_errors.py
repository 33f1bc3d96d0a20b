"""Says in words why a server cannot be reached. The words are for the operator: no client gets them."""

from __future__ import annotations

import errno
from typing import TypeVar

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.error import (
    ConnectError,
    ConnectionAborted,
    ConnectionClosed,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TCPTimedOutError,
    TimeoutError,
    UnknownHostError,
)

from twisted_vllm.config.settings import Server

E = TypeVar("E", bound=BaseException)

#: what a TLS record of the type alert begins with (RFC 8446 §5.1)
TLS_ALERT = b"\x15\x03"

SPEAKS_TLS = "it speaks TLS, and its api_base begins with http:// (write https://)"
SPEAKS_HTTP = "it speaks plain HTTP, or no TLS at all, and its api_base begins with https:// (write http://)"
_DEMANDED = "it demands a certificate of the gateway (name one in ssl_certificate)"
_NOT_ACCEPTED = "it does not accept the gateway's certificate, ssl_certificate"

#: characters of a server's certificate that are repeated
_SHOWN = 200

# openssl/x509_vfy.h
_NOT_YET_VALID, _EXPIRED = 9, 10
_SELF_SIGNED, _UNKNOWN_ISSUERS = 18, frozenset((2, 19, 20, 21))
_OTHER_FAULTS = {
    23: "is revoked",
    24: "was signed by a certificate that is no authority",
    26: "is not made for servers",
    66: "has a key that is too short",
    67: "has an authority whose key is too short",
    68: "is signed with a digest that is too weak",
}

#: words of OpenSSL's reasons if what came was no TLS
_NO_TLS = ("wrong version number", "http request", "packet length too long", "unexpected message", "unknown protocol")
_UNWANTED = (
    *("bad certificate", "unknown ca", "certificate unknown", "certificate expired", "certificate revoked"),
    *("unsupported certificate", "access denied", "decrypt error"),
)

_SYSTEM_ERRORS = {
    errno.EHOSTUNREACH: "there is no route to it",
    errno.ENETUNREACH: "there is no route to it",
    errno.ENETDOWN: "there is no route to it",
    errno.ENOENT: "there is no socket of this name",
    errno.ENOTDIR: "there is no socket of this name",
    errno.EACCES: "the gateway may not open the socket (give its user the right to write to it)",
    errno.ENOTSOCK: "the file of this name is no socket",
}


class TlsFileError(OSError):
    """A file of the settings of TLS cannot be used. The message says which, and why."""


def with_words(error: E, words: str) -> E:
    """Return an error with a note for the operator, which `words_of` returns and no client gets."""
    error.add_note(words)
    return error


def words_of(error: BaseException) -> str:
    """Return why a server cannot be reached, or the error's own message."""
    notes = getattr(error, "__notes__", [])
    return str(notes[-1]) if notes else str(error)


def explain(
    error: BaseException, server: Server, *, handshaking: bool = False, certificate: str = "", wanted: bool = False
) -> str:
    """Return why a connection to a server was not made, or was lost.

    Args:
        error: what Twisted or OpenSSL report.
        server: the server.
        handshaking: whether the connection was lost before TLS was established.
        certificate: what is wrong with the server's certificate, as `certificate_fault` returns it.
        wanted: whether the server asked for a certificate, and then closed the connection without a byte.
    """
    if certificate:
        return certificate
    if wanted and isinstance(error, (SSL.Error, ConnectionClosed)):
        return _NOT_ACCEPTED if server.tls_options.certificate_file else _DEMANDED
    if isinstance(error, SSL.Error):
        return _tls_fault(error)
    if isinstance(error, (DNSLookupError, UnknownHostError)):
        return "its name is not known"
    if isinstance(error, (TimeoutError, TCPTimedOutError)):
        return f"it did not accept a connection within {server.timeouts.connect:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "it refuses connections: nothing listens on its " + (
            "socket" if server.socket else f"port {server.port}"
        )
    if isinstance(error, ConnectError) and error.osError in _SYSTEM_ERRORS:
        return _SYSTEM_ERRORS[error.osError]
    if handshaking and isinstance(error, ConnectionClosed) and not isinstance(error, ConnectionAborted):
        return "it closed the connection before TLS was established (if it speaks plain HTTP, write http://)"
    if isinstance(error, ConnectionDone):
        return "it closed the connection"
    if isinstance(error, ConnectionLost):
        return "the connection was reset or broke off"
    return str(error) or type(error).__name__


def certificate_fault(code: int, certificate: x509.Certificate) -> str:
    """Return what is wrong with a server's certificate.

    Args:
        code: OpenSSL's ``X509_V_ERR_…``.
        certificate: the faulty one of the chain.
    """
    if code == _EXPIRED:
        return f"its certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if code == _NOT_YET_VALID:
        return f"its certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, not before"
    if code == _SELF_SIGNED:
        return "its certificate is self-signed and not trusted (name its file in ssl_ca)"
    if code in _UNKNOWN_ISSUERS:
        issuer = _shown(certificate.issuer.rfc4514_string())
        return f"its certificate is of an unknown issuer, {issuer} (name the file of that authority in ssl_ca)"
    return f"its certificate {_OTHER_FAULTS.get(code, f'is not valid (OpenSSL error {code})')}"


def wrong_name(host: str, certificate: x509.Certificate) -> str:
    """Return that a certificate is for other names."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return f"its certificate is not for the name {host}: it names no host at all"
    said = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return f"its certificate is not for the name {host}, but for {_shown(', '.join(said))}"


def _tls_fault(error: SSL.Error) -> str:
    queue = error.args[0] if error.args else []
    # a failed system call has its number in place of OpenSSL's queue of errors
    reasons = [str(entry[-1]) for entry in queue if entry] if isinstance(queue, list) else [str(error.args[-1])]
    said = " ".join(reasons).lower()
    if any(each in said for each in _NO_TLS):
        return SPEAKS_HTTP
    if "certificate required" in said:
        return _DEMANDED
    if "alert" in said and any(each in said for each in _UNWANTED):
        return _NOT_ACCEPTED
    if "protocol version" in said or "unsupported protocol" in said:
        return "it speaks no version of TLS that the gateway speaks (1.2 and later)"
    if "unrecognized name" in said:
        return "it serves no site of this name by TLS"
    if "handshake failure" in said:
        return "it refused the TLS handshake (no cipher in common, or it demands a certificate, ssl_certificate)"
    if "unexpected eof" in said:
        return "it closed the connection before TLS was established (if it speaks plain HTTP, write http://)"
    return f"TLS failed: {', '.join(reasons) or 'no reason is known'}"


def _shown(text: str) -> str:
    """Return what a server's certificate says, in one short line."""
    line = "".join(each if each.isprintable() else "?" for each in text)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
