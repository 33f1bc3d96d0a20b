"""Single requests to servers, through real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import PrivateCertificate, trustRootFromCertificates
from twisted.internet.ssl import optionsForClientTLS as options_for

from tests.end_to_end.end_to_end_harness import HOST, StandIn, Wire, server_at
from tests.self_signed import self_signed_pem
from twisted_vllm.config.settings import Server
from twisted_vllm.upstreams.faults import fault_of_error
from twisted_vllm.upstreams.probe import Answer, Prober

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Serve = Callable[..., Server]

# Twisted's server side passes some
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


@pytest.fixture
def serve(reactor: Any) -> Iterator[Serve]:
    """Serves plain HTTP, or HTTPS with a certificate; returns the server."""
    made: list[Any] = []

    def make(certificate: Any = None) -> Server:
        factory = Factory.forProtocol(lambda: Wire(reactor, lambda wire: wire.send(OK)))
        if certificate is None:
            found = StandIn(reactor, None)
            # also to what is no HTTP
            found.respond = lambda wire: wire.send(OK)
            made.append(found.stop)
            return server_at(found.port)
        port = reactor.listenSSL(0, factory, certificate.options(), interface=HOST)
        made.append(port.stopListening)
        return attrs.evolve(server_at(port.getHost().port), host="localhost", tls=True)

    yield make
    for stop in made:
        pytest_twisted.blockon(stop())


def ask(reactor: Any, server: Server, **tls: Any) -> Deferred[Answer]:
    def endpoint_of(server: Server) -> Any:
        plain = HostnameEndpoint(reactor, server.host, server.port)
        return wrapClientTLS(options_for(server.host, **tls), plain) if server.tls else plain

    return Prober(endpoint_of, reactor).get(server, b"/health", timeout=5.0, max_body=10)


async def fault(reactor: Any, server: Server) -> str | None:
    with pytest.raises(Exception) as failed:
        await ask(reactor, server)
    return fault_of_error(failed.value)


@pytest_twisted.ensureDeferred
async def test_a_server_is_asked_in_plain_http_and_with_tls(reactor: Any, serve: Serve) -> None:
    assert await ask(reactor, serve()) == Answer(200, b"{}")
    certificate = PrivateCertificate.loadPEM(self_signed_pem())
    trust = trustRootFromCertificates([certificate])
    assert await ask(reactor, serve(certificate), trustRoot=trust) == Answer(200, b"{}")


@pytest_twisted.ensureDeferred
async def test_each_thing_that_can_be_wrong_with_a_connection_has_its_name(reactor: Any, serve: Serve) -> None:
    certificate = PrivateCertificate.loadPEM(self_signed_pem())
    assert await fault(reactor, serve(certificate)) == "tls_failed", "a stranger's certificate"
    assert await fault(reactor, attrs.evolve(serve(), tls=True)) == "tls_failed", "HTTPS to a plain server"
    plain = attrs.evolve(serve(certificate), tls=False)
    assert await fault(reactor, plain) in ("protocol_error", "connection_lost"), "plain HTTP to an HTTPS server"
    assert await fault(reactor, server_at(1)) == "connection_refused"
    nowhere = attrs.evolve(server_at(1), host="no-such-host.invalid")
    assert await fault(reactor, nowhere) == "name_not_found"
