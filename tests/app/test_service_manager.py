"""What systemd is told, and what happens if it cannot be."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from twisted_vllm.app.service_manager import ServiceManager


def test_a_socket_in_the_abstract_namespace_is_told() -> None:
    name = f"vllm-passthrough-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        ServiceManager(f"@{name}", lambda: 5_000_999).reloading()
        assert manager.recv(100) == b"RELOADING=1\nMONOTONIC_USEC=5000"


def test_without_a_socket_nobody_is_told() -> None:
    ServiceManager(None).ready()
    ServiceManager("").stopping()


def test_a_manager_that_has_gone_does_no_harm(tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "gone")).ready()
