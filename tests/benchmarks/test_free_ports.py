"""A port that was reserved for a server stays free for it."""

from __future__ import annotations

import socket
import sys

import pytest

from benchmarks.free_ports import free_port

HOST = "127.0.0.1"
#: sockets that ask for any port (Linux chooses from some 14,000), and reserved ports
ASKING, HELD = 2_000, 100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a port be held for its server")
def test_a_held_port_is_not_given_to_sockets_that_ask_for_any() -> None:
    held = {free_port() for _ in range(HELD)}
    assert len(held) == HELD
    given = set()
    for number in range(ASKING):
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, number % 2)
            asking.bind((HOST, 0))
            given.add(asking.getsockname()[1])
    assert not given & held


def test_its_server_binds_it_repeatedly_and_connections_are_refused_until_then() -> None:
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
