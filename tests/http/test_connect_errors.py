"""In which words the operator learns why a server cannot be reached."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from twisted.internet.error import (
    ConnectError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TCPTimedOutError,
    TimeoutError,
    UnknownHostError,
)

from tests.http.upstream_harness import make_server
from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.errors import UpstreamUnreachable
from twisted_vllm.http.client.connect_errors import (
    SPEAKS_HTTP,
    TlsFileError,
    certificate_fault,
    explain,
    with_words,
    words_of,
    wrong_name,
)

SERVER = make_server(Timeouts(connect=5.0))
AT_SOCKET = attrs.evolve(SERVER, socket="/run/vllm.sock")
DEMANDS = "it demands a certificate of the gateway (name one in ssl_certificate)"
CLOSED = "it closed the connection before TLS was established (if it speaks plain HTTP, write http://)"


def system(number: int) -> ConnectError:
    return ConnectError(number, os.strerror(number))


def tls(*reasons: str) -> SSL.Error:
    return SSL.Error([("SSL routines", "", reason) for reason in reasons])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(), "it refuses connections: nothing listens on its port 8000"),
        (TimeoutError(), "it did not accept a connection within 5 s"),
        (TCPTimedOutError(), "it did not accept a connection within 5 s"),
        (DNSLookupError("x"), "its name is not known"),
        (UnknownHostError(), "its name is not known"),
        (system(errno.EHOSTUNREACH), "there is no route to it"),
        (system(errno.ENETUNREACH), "there is no route to it"),
        (system(errno.ENOENT), "there is no socket of this name"),
        (system(errno.EACCES), "the gateway may not open the socket (give its user the right to write to it)"),
        (ConnectionDone(), "it closed the connection"),
        (ConnectionLost(), "the connection was reset or broke off"),
        (tls("wrong version number"), SPEAKS_HTTP),
        (tls("http request"), SPEAKS_HTTP),
        (tls("tlsv13 alert certificate required"), DEMANDS),
        (tls("ssl/tls alert bad certificate"), "it does not accept the gateway's certificate, ssl_certificate"),
        (tls("tlsv1 alert unknown ca"), "it does not accept the gateway's certificate, ssl_certificate"),
        (tls("tlsv1 alert protocol version"), "it speaks no version of TLS that the gateway speaks (1.2 and later)"),
        (tls("tlsv1 unrecognized name"), "it serves no site of this name by TLS"),
        (tls("unexpected eof while reading"), CLOSED),
        (tls("something new"), "TLS failed: something new"),
        (SSL.Error(), "TLS failed: no reason is known"),
        (SSL.SysCallError(-1, "Unexpected EOF"), CLOSED),
        (TlsFileError("ssl_ca: the file x cannot be read"), "ssl_ca: the file x cannot be read"),
    ],
)
def test_each_reason_has_its_words(error: Exception, words: str) -> None:
    assert explain(error, SERVER) == words


def test_where_a_socket_is_refused_no_port_is_named() -> None:
    assert explain(ConnectionRefusedError(), AT_SOCKET) == "it refuses connections: nothing listens on its socket"


@pytest.mark.parametrize("error", [ConnectionDone(), ConnectionLost()])
def test_a_connection_that_ends_in_the_handshake(error: Exception) -> None:
    assert explain(error, SERVER, handshaking=True) == CLOSED


def test_a_server_that_asked_for_a_certificate_and_closed() -> None:
    assert explain(ConnectionLost(), SERVER, wanted=True) == DEMANDS
    showing = attrs.evolve(SERVER, tls_options=ServerTls(certificate_file="own.pem"))
    assert explain(ConnectionLost(), showing, wanted=True) == (
        "it does not accept the gateway's certificate, ssl_certificate"
    )
    assert explain(TimeoutError(), SERVER, wanted=True) == "it did not accept a connection within 5 s"


def test_what_is_wrong_with_a_certificate_comes_first() -> None:
    assert explain(tls("certificate verify failed"), SERVER, certificate="its certificate expired") == (
        "its certificate expired"
    )


def certificate(issuer: str = "somebody", *names: x509.GeneralName) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime(2026, 11, 30, 8, 30, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "its certificate is valid from 2026-11-30 08:30 UTC on, not before"),
        (10, "its certificate expired on 2026-12-01 08:30 UTC"),
        (18, "its certificate is self-signed and not trusted (name its file in ssl_ca)"),
        (20, "its certificate is of an unknown issuer, CN=somebody (name the file of that authority in ssl_ca)"),
        (23, "its certificate is revoked"),
        (999, "its certificate is not valid (OpenSSL error 999)"),
    ],
)
def test_each_fault_of_a_certificate_has_its_words(code: int, words: str) -> None:
    assert certificate_fault(code, certificate()) == words


def test_what_a_certificate_says_is_one_short_line() -> None:
    words = certificate_fault(20, certificate("a\nb\x1b[31m" + "c" * 50))
    assert words.isprintable()
    many = wrong_name("gpu", certificate("x", *(x509.DNSName(f"host-{number}.example") for number in range(500))))
    assert len(many) < 300


def test_a_certificate_that_names_no_host() -> None:
    assert wrong_name("gpu", certificate()) == "its certificate is not for the name gpu: it names no host at all"


def test_the_words_go_with_the_error_and_not_into_its_answer() -> None:
    error = with_words(UpstreamUnreachable("The vLLM server cannot be reached."), "nothing listens at 192.0.2.7")
    assert words_of(error) == "nothing listens at 192.0.2.7"
    assert b"192.0.2.7" not in error.body()
    assert words_of(UpstreamUnreachable("as it is")) == "as it is"
