"""Certificates of listening ports that are replaced while the ports listen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from zope.interface.verify import verifyObject

from tests.certificates import Authority
from tests.self_signed import self_signed_pem
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.http.net.certificates import Listeners

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side does

NAMES = ("one.pem", "two.pem")


class Ports:
    """A reactor that keeps what ports it was asked for."""

    def __init__(self) -> None:
        self.certificates: list[Any] = []

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> int:
        assert verifyObject(IOpenSSLServerConnectionCreator, contextFactory)
        self.certificates.append(contextFactory)
        return port

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> int:
        return port

    def presented(self) -> list[bytes]:
        """Return what clients get now, by its digest."""
        connections: list[Any] = [each.serverConnectionForTLS(None) for each in self.certificates]
        return [connection.get_certificate().digest("sha256") for connection in connections]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    for name in NAMES:
        (tmp_path / name).write_bytes(self_signed_pem())
    monkeypatch.chdir(tmp_path)
    yield ["tcp:80", *(f"ssl:44{number}:privateKey={name}:certKey={name}" for number, name in enumerate(NAMES))]


def listen(texts: list[str], directory: Path) -> tuple[Ports, Listeners]:
    ports = Ports()
    listeners = Listeners(ports, str(directory))
    for text in texts:
        listeners.endpoint(text).listen(Factory())
    return ports, listeners


def test_equal_files_are_told_and_other_files_are_used_when_they_are_applied(texts: list[str], tmp_path: Path) -> None:
    ports, listeners = listen(texts, tmp_path)
    before = ports.presented()
    assert listeners.prepare(texts)[0] is False
    (tmp_path / "two.pem").write_bytes(self_signed_pem())
    differs, apply = listeners.prepare(texts)
    assert (differs, ports.presented()) == (True, before)
    apply()
    first, second = ports.presented()
    assert first == before[0]
    assert second != before[1]


def test_files_are_below_the_directory_of_the_start(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, listeners = listen(texts, tmp_path)
    monkeypatch.chdir("/")
    assert listeners.prepare(texts)[0] is False


def test_all_files_that_cannot_be_used_are_told_and_none_is_replaced(texts: list[str], tmp_path: Path) -> None:
    ports, listeners = listen(texts, tmp_path)
    before = ports.presented()
    (tmp_path / "one.pem").write_text("no certificate")
    (tmp_path / "two.pem").unlink()
    with pytest.raises(ConfigError) as told:
        listeners.prepare(texts)
    assert [problem.path for problem in told.value.problems] == ["passthrough.listen"] * 2
    assert ports.presented() == before


def test_when_each_ends_is_known_and_another_file_ends_at_another_time(texts: list[str], tmp_path: Path) -> None:
    _, listeners = listen([f"{texts[1]}:interface=127.0.0.1", *texts[2:]], tmp_path)
    first, second = listeners.certificates
    assert (first.listener, second.listener) == ("127.0.0.1:440", "*:441")
    in_a_day = time.time() + 86_400
    assert all(abs(each.ends - in_a_day) < 60 for each in (first, second))
    authority = Authority()
    (tmp_path / NAMES[1]).write_bytes(b"".join(authority.sign("localhost", ended=3)))
    _, apply = listeners.prepare([f"{texts[1]}:interface=127.0.0.1", *texts[2:]])
    apply()
    assert abs(second.ends - (time.time() - 3 * 86_400)) < 60
