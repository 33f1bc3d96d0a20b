"""TLS to servers over real sockets: what is accepted, and what the operator is told of what is not."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import pytest_twisted
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from tests.certificates import Authority, pem_of
from tests.http.upstream_harness import BodyReader, make_server
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.errors import GatewayError, UpstreamUnreachable
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.connect_errors import TlsFileError
from twisted_vllm.http.client.endpoints import Endpoints
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.tls import read_all, read_files, seconds_of
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.write_coalescing import WriteCoalescer

LOOPBACK = "127.0.0.1"
#: real seconds after which a test that waits is called stuck
PATIENCE = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
AUTHORITY = Authority()


class Lab:
    """An agent on the real reactor.

    Attributes:
        lines: what it logged.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.lines: list[str] = []
        self.deadlines = DeadlineSweeper(reactor)
        self.deadlines.start()
        self.agent = UpstreamAgent(reactor, self.deadlines, WriteCoalescer(), asks_for_tls=True)

    def server(self, port: int, options: ServerTls | None, host: str = LOOPBACK) -> Server:
        tls = options is not None
        server = attrs.evolve(make_server(Timeouts(connect=2.0), host=host, port=port), tls=tls)
        return server if options is None else attrs.evolve(server, tls_options=options)

    async def get(self, server: Server) -> bytes:
        lines = RawHeaders.from_pairs([(b"Host", b"vllm")])
        response = await self.agent.request(b"GET", server.url + b"/", lines, server=server)
        reader = BodyReader(response)
        response.deliverBody(reader)
        await self.until(lambda: reader.end is not None)
        return reader.body

    async def refusal(self, server: Server) -> GatewayError:
        with pytest.raises(GatewayError) as caught:
            await self.get(server)
        return caught.value

    async def until(self, is_so: Callable[[], object]) -> None:
        stuck_at = self.reactor.seconds() + PATIENCE
        while not is_so():
            assert self.reactor.seconds() < stuck_at, "still not so"
            await cast(Deferred[None], deferLater(self.reactor, 0.01))


@pytest.fixture
def lab(reactor: Any) -> Iterator[Lab]:
    lab = Lab(reactor)
    observer = cast(ILogObserver, lambda event: _keep(lab, event))
    globalLogPublisher.addObserver(observer)
    yield lab
    globalLogPublisher.removeObserver(observer)
    lab.agent.close()
    pytest_twisted.blockon(deferLater(reactor, 0.05))
    lab.deadlines.stop()


def _keep(lab: Lab, event: LogEvent) -> None:
    if str(event.get("log_namespace", "")).startswith("twisted_vllm."):
        lab.lines.append(formatEvent(event))


@contextmanager
def serving(
    answer: Callable[[bytes], bytes], certificate: Path | None = None, clients_of: Path | None = None
) -> Iterator[int]:
    """Serve with Python's own TLS, as vLLM does, in a thread; yields the port.

    Args:
        answer: returns the answer to what came, after which the connection is closed; empty for none.
        certificate: the certificate with its key; None for no TLS.
        clients_of: the authority of the certificates that clients must show; None for none.
    """
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        if clients_of is not None:
            context.load_verify_locations(clients_of)
            context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if found := answer(await reader.read(65_536)):
                writer.write(found)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    listening = loop.run_until_complete(asyncio.start_server(serve, LOOPBACK, 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def close() -> None:
        listening.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def trusting(directory: Path, **others: Any) -> ServerTls:
    return ServerTls(ca_file=str(AUTHORITY.write_own(directory)), **others)


@pytest.mark.parametrize("host", [LOOPBACK, "localhost"])
@pytest_twisted.ensureDeferred
async def test_a_server_of_a_private_authority_is_reached(lab: Lab, tmp_path: Path, host: str) -> None:
    certificate = AUTHORITY.write(tmp_path, "server", host)
    with serving(lambda _: OK, certificate) as port:
        assert await lab.get(lab.server(port, trusting(tmp_path), host)) == b"ok"
    assert lab.lines == []


@pytest_twisted.ensureDeferred
async def test_a_server_that_dns_found_shows_the_certificate_of_its_service(lab: Lab, tmp_path: Path) -> None:
    service = "vllm.default.svc"
    for names, is_right in ((service,), True), ((LOOPBACK,), False):
        certificate = AUTHORITY.write(tmp_path, names[0], *names)
        with serving(lambda _: OK, certificate) as port:
            # the name is known to no resolver: the address is connected to
            found = attrs.evolve(lab.server(port, trusting(tmp_path), service), address=LOOPBACK)
            if is_right:
                assert await lab.get(found) == b"ok"
            else:
                await lab.refusal(found)


@pytest.mark.parametrize(
    ("names", "ended", "signed_by", "told"),
    [
        ((LOOPBACK,), 3, AUTHORITY, "its certificate expired on 2"),
        ((LOOPBACK,), -3, AUTHORITY, "its certificate is valid from 2"),
        (
            ("gpu-2.example", "192.0.2.1"),
            0,
            AUTHORITY,
            "is not for the name 127.0.0.1, but for gpu-2.example, 192.0.2.1",
        ),
        (
            (LOOPBACK,),
            0,
            Authority("Somebody"),
            "is of an unknown issuer, CN=Somebody (name the file of that authority",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_bad_certificate_is_told_to_the_operator_and_to_nobody_else(
    lab: Lab, tmp_path: Path, names: tuple[str, ...], ended: int, signed_by: Authority, told: str
) -> None:
    received: list[bytes] = []

    def answer(data: bytes) -> bytes:
        received.append(data)
        return OK

    certificate = signed_by.write(tmp_path, "server", *names, ended=ended)
    with serving(answer, certificate) as port:
        error = await lab.refusal(lab.server(port, trusting(tmp_path)))
    assert isinstance(error, UpstreamUnreachable)
    assert error.message == "The vLLM server cannot be reached."
    [line] = lab.lines
    assert line.startswith(f"Lost {LOOPBACK}:{port}: ")
    assert told in line
    assert not any(received), "nothing is sent to a stranger"


@pytest_twisted.ensureDeferred
async def test_without_a_check_any_certificate_will_do(lab: Lab, tmp_path: Path) -> None:
    certificate = Authority("Somebody").write(tmp_path, "server", "elsewhere.example", ended=9)
    with serving(lambda _: OK, certificate) as port:
        assert await lab.get(lab.server(port, ServerTls(verify=False))) == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_server_that_demands_a_certificate_gets_it(lab: Lab, tmp_path: Path) -> None:
    certificate, authority = AUTHORITY.write(tmp_path, "server", LOOPBACK), AUTHORITY.write_own(tmp_path)
    own, key = AUTHORITY.sign("gateway")
    (tmp_path / "own.pem").write_bytes(own)
    (tmp_path / "own.key").write_bytes(key)
    options = trusting(tmp_path, certificate_file=str(tmp_path / "own.pem"), key_file=str(tmp_path / "own.key"))
    with serving(lambda _: OK, certificate, authority) as port:
        assert await lab.get(lab.server(port, options)) == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_server_that_demands_a_certificate_and_gets_none_is_told_apart(lab: Lab, tmp_path: Path) -> None:
    certificate, authority = AUTHORITY.write(tmp_path, "server", LOOPBACK), AUTHORITY.write_own(tmp_path)
    with serving(lambda _: OK, certificate, authority) as port:
        error = await lab.refusal(lab.server(port, trusting(tmp_path)))
    assert error.message == "The vLLM server cannot be reached."
    assert [line.partition(": ")[2] for line in lab.lines] == [
        "it demands a certificate of the gateway (name one in ssl_certificate)"
    ]


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_the_server_does_not_accept_is_told_apart(lab: Lab, tmp_path: Path) -> None:
    certificate, authority = AUTHORITY.write(tmp_path, "server", LOOPBACK), AUTHORITY.write_own(tmp_path)
    own = Authority("Somebody").write(tmp_path, "own", "gateway")
    with serving(lambda _: OK, certificate, authority) as port:
        await lab.refusal(lab.server(port, trusting(tmp_path, certificate_file=str(own))))
    assert [line.partition(": ")[2] for line in lab.lines] == [
        "it does not accept the gateway's certificate, ssl_certificate"
    ]


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"Invalid\r\n"])
@pytest_twisted.ensureDeferred
async def test_an_https_address_that_speaks_plain_http_is_told_so(lab: Lab, said: bytes) -> None:
    with serving(lambda _: said) as port:
        error = await lab.refusal(lab.server(port, ServerTls()))
    assert error.message == "The vLLM server cannot be reached."
    assert [line.partition(": ")[2] for line in lab.lines] == [
        "it speaks plain HTTP, or no TLS at all, and its api_base begins with https:// (write http://)"
    ]


@pytest_twisted.ensureDeferred
async def test_an_http_address_that_speaks_tls_is_told_so_where_the_server_closes_without_a_word(
    lab: Lab, tmp_path: Path
) -> None:
    with serving(lambda _: OK, AUTHORITY.write(tmp_path, "server", LOOPBACK)) as port:
        server = lab.server(port, None)
        assert isinstance(await lab.refusal(server), UpstreamUnreachable)
        await lab.until(lambda: len(lab.lines) == 2)
        assert [line.partition(": ")[2] for line in lab.lines] == [
            "it closed the connection",
            "it speaks TLS, and its api_base begins with http:// (write https://)",
        ]
        await lab.refusal(server)
        assert len(lab.lines) == 3, "it is not asked each time"


@pytest_twisted.ensureDeferred
async def test_an_http_address_that_answers_with_an_alert_is_told_so(lab: Lab) -> None:
    with serving(lambda _: b"\x15\x03\x01\x00\x02\x02\x28") as port:
        error = await lab.refusal(lab.server(port, None))
    assert (error.message, error.code) == ("The vLLM server cannot be reached.", "upstream_unreachable")
    assert [line.partition(": ")[2] for line in lab.lines] == [
        "it speaks TLS, and its api_base begins with http:// (write https://)"
    ]


@pytest_twisted.ensureDeferred
async def test_a_plain_server_that_closes_without_a_word_is_not_said_to_speak_tls(lab: Lab) -> None:
    seen: list[bytes] = []

    def answer(data: bytes) -> bytes:
        seen.append(data)
        return b""

    with serving(answer) as port:
        await lab.refusal(lab.server(port, None))
        await lab.until(lambda: len(seen) == 2)
    assert [line.partition(": ")[2] for line in lab.lines] == ["it closed the connection"]


@pytest_twisted.ensureDeferred
async def test_where_nothing_listens_that_is_what_the_operator_reads(lab: Lab) -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        port = listening.getsockname()[1]
    await lab.refusal(lab.server(port, None))
    assert lab.lines == [
        f"No connection to {LOOPBACK}:{port}: it refuses connections: nothing listens on its port {port}"
    ]


@pytest_twisted.ensureDeferred
async def test_a_reload_reads_the_files_again(lab: Lab, tmp_path: Path) -> None:
    certificate = AUTHORITY.write(tmp_path, "server", LOOPBACK)
    options = ServerTls(ca_file=str(Authority("Somebody").write_own(tmp_path, "trusted")))
    with serving(lambda _: OK, certificate) as port:
        server = lab.server(port, options)
        await lab.refusal(server)
        AUTHORITY.write_own(tmp_path, "trusted")
        await lab.refusal(server)
        lab.agent.reconfigure([server], None, read_all([server]))
        assert await lab.get(server) == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_reload_that_cannot_read_a_file_changes_nothing(lab: Lab, tmp_path: Path) -> None:
    certificate = AUTHORITY.write(tmp_path, "server", LOOPBACK)
    options = trusting(tmp_path)
    with serving(lambda _: OK, certificate) as port:
        server = lab.server(port, options)
        lab.agent.reconfigure([server], None, read_all([server]))
        (tmp_path / "authority.pem").unlink()
        with pytest.raises(ConfigError, match=r"ssl_ca: the file .*authority.pem cannot be read \(No such file"):
            read_all([server])
        assert await lab.get(server) == b"ok"


def test_only_servers_whose_files_have_changed_are_connected_to_anew(tmp_path: Path) -> None:
    reactor: Any = MemoryReactorClock()
    endpoints = Endpoints(reactor, DeadlineSweeper(reactor), {}, lambda _: 0, lambda _: None)
    servers = [
        attrs.evolve(
            make_server(host=f"192.0.2.{number}"),
            tls=True,
            tls_options=ServerTls(ca_file=str(AUTHORITY.write_own(tmp_path, f"authority-{number}"))),
        )
        for number in range(3)
    ]
    assert endpoints.use(read_all(servers)) == []
    for server in servers:
        endpoints.of(server)
    assert endpoints.use(read_all(servers)) == []
    Authority("Somebody").write_own(tmp_path, "authority-1")
    assert endpoints.use(read_all(servers)) == [servers[1]]
    assert endpoints.use(read_all(servers)) == []


def test_each_fault_of_a_file_is_told(tmp_path: Path) -> None:
    own, key = AUTHORITY.sign("gateway")
    _, other_key = AUTHORITY.sign("gateway")
    files = {
        "own.pem": own,
        "own.key": key,
        "other.key": other_key,
        "encrypted.key": pem_of(ec.generate_private_key(ec.SECP256R1()), b"password"),
        "empty.pem": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    make: Any = ServerTls

    def fault(**named: str) -> str:
        with pytest.raises(TlsFileError) as caught:
            read_files(make(**{name: str(tmp_path / file) for name, file in named.items()}))
        return str(caught.value).replace(f"{tmp_path}/", "")

    assert fault(ca_file="none.pem") == "ssl_ca: the file none.pem cannot be read (No such file or directory)"
    assert fault(ca_file="empty.pem") == "ssl_ca: the file empty.pem holds no certificate in PEM"
    assert fault(certificate_file="own.key") == "ssl_certificate: the file own.key holds no certificate in PEM"
    assert fault(certificate_file="own.pem") == (
        "ssl_certificate: the file own.pem holds no private key in PEM (write ssl_key if it is in another file)"
    )
    assert fault(certificate_file="own.pem", key_file="own.pem") == (
        "ssl_key: the file own.pem holds no private key in PEM"
    )
    assert fault(certificate_file="own.pem", key_file="other.key") == (
        "ssl_key: the key in other.key is not that of the certificate"
    )
    assert fault(certificate_file="own.pem", key_file="encrypted.key") == (
        "ssl_key: the key in encrypted.key is encrypted (write it without a password)"
    )
    read_files(ServerTls(certificate_file=str(tmp_path / "own.pem"), key_file=str(tmp_path / "own.key")))


def test_the_problems_of_servers_name_the_server(tmp_path: Path) -> None:
    broken = ServerTls(ca_file="none.pem")
    servers = [attrs.evolve(make_server(host=f"192.0.2.{each}"), tls=True, tls_options=broken) for each in (1, 2)]
    with pytest.raises(ConfigError) as caught:
        read_all([*servers, make_server()], str(tmp_path))
    fault = f"ssl_ca: the file {tmp_path}/none.pem cannot be read (No such file or directory)"
    assert str(caught.value).splitlines() == [f"https://{server.name}: {fault}" for server in servers]


@pytest.mark.parametrize("verify", [True, False])
@pytest_twisted.ensureDeferred
async def test_it_is_known_when_certificates_end(lab: Lab, tmp_path: Path, verify: bool) -> None:
    """That of the server is known from the handshake, also if it is not checked or has ended."""
    certificate = AUTHORITY.write(tmp_path, "server", LOOPBACK, ended=2)
    own = AUTHORITY.write(tmp_path, "own", "gateway")
    authority = AUTHORITY.write_own(tmp_path)
    options = ServerTls(verify=verify, ca_file=str(authority) if verify else None, certificate_file=str(own))
    with serving(lambda _: OK, certificate) as port:
        server = lab.server(port, options)
        assert dict(lab.agent.certificate_ends(server)) == {}
        if verify:
            await lab.refusal(server)
        else:
            assert await lab.get(server) == b"ok"
    found = dict(lab.agent.certificate_ends(server))
    now = time.time()
    assert abs(found.pop("server") - (now - 2 * 86_400)) < 60
    assert abs(found.pop("client") - (now + 86_400)) < 60
    if verify:
        # it was made when the tests began
        assert 0 < now + 86_400 - found.pop("authority") < 7_200
    assert found == {}


def test_a_server_without_tls_has_no_certificate(lab: Lab) -> None:
    assert list(lab.agent.certificate_ends(lab.server(80, None))) == []


def test_a_moment_of_a_certificate_is_in_utc() -> None:
    assert seconds_of(b"20270115080000Z") == 1_800_000_000.0
    assert seconds_of(b"99991231235959Z") == 253_402_300_799.0
    # of a hostile server
    assert [seconds_of(each) for each in (b"00000101000000Z", b"20261301000000Z", b"2026", b"")] == [0.0] * 4
