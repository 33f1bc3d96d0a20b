"""A port that a test was promised is still there when its server comes for it."""

from __future__ import annotations

import socket
import sys

import pytest

from tests.free_ports import free_port

HOST = "127.0.0.1"
#: sockets that ask for any port, of some 14,000 that Linux chooses from, and ports that are held
ASKING, HELD = 2_000, 100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a port be held for its server")
def test_nobody_who_asks_for_any_port_gets_one_that_is_held() -> None:
    held = {free_port() for _ in range(HELD)}
    assert len(held) == HELD
    given = set()
    for number in range(ASKING):
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, number % 2)
            asking.bind((HOST, 0))
            given.add(asking.getsockname()[1])
    assert not given & held


def test_the_server_that_it_is_for_gets_it_again_and_again_and_until_then_everybody_is_refused() -> None:
    port = free_port()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with (
            socket.create_server((HOST, port)) as server,
            socket.create_connection((HOST, port)),
            server.accept()[0],
        ):
            pass
