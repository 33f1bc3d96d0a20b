"""A server that speaks Redis' protocol and answers as it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory, Protocol

from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer

#: what a command is answered; None for nothing
Answer = Callable[[list[str]], Any]


class Failed(Exception):
    """An answer that is an error."""


def encoded(answer: Any) -> bytes:
    """Return an answer as RESP has it."""
    match answer:
        case Failed():
            return f"-{answer}\r\n".encode()
        case None:
            return b"*-1\r\n"
        case int():
            return f":{answer}\r\n".encode()
        case list():
            return f"*{len(answer)}\r\n".encode() + b"".join(map(encoded, answer))
        case _:
            return f"${len(str(answer))}\r\n{answer}\r\n".encode()


class ScriptedRedis(Factory):
    """Answers each command from a table by its first word; `SILENT` answers nothing.

    Attributes:
        received: all commands, each as its words.
        open: connections that are open.
    """

    SILENT = object()
    noisy = False

    def __init__(self, reactor: Any, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.received: list[list[str]] = []
        self.open: list[Protocol] = []
        self.port = reactor.listenTCP(0, self, interface="127.0.0.1")

    @property
    def number(self) -> int:
        """Its TCP port."""
        return int(self.port.getHost().port)

    def server(self, password: str | None = None) -> RedisServer:
        """Return where it is."""
        return RedisServer("127.0.0.1", self.number, password=None if password is None else Secret(password))

    def buildProtocol(self, addr: Any) -> Protocol:
        return _Connection(self)

    def stop(self) -> Any:
        """Stop listening and close the connections."""
        for each in self.open:
            transport: Any = each.transport
            transport.abortConnection()
        return self.port.stopListening()


class _Connection(Protocol):
    def __init__(self, scripted: ScriptedRedis) -> None:
        self._scripted = scripted
        self._data = b""

    def connectionMade(self) -> None:
        self._scripted.open.append(self)

    def connectionLost(self, reason: Any = None) -> None:
        self._scripted.open.remove(self)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        while (command := self._next()) is not None:
            self._scripted.received.append(command)
            answer = self._scripted.answers.get(command[0], Failed("ERR unknown command"))
            answer = answer(command) if callable(answer) else answer
            assert self.transport is not None
            if answer is not ScriptedRedis.SILENT:
                self.transport.write(b"+OK\r\n" if answer == "OK" else encoded(answer))

    def _next(self) -> list[str] | None:
        lines = self._data.split(b"\r\n")
        if not lines[0].startswith(b"*"):
            return None
        count = int(lines[0][1:])
        if len(lines) < 2 + 2 * count:
            return None
        self._data = b"\r\n".join(lines[1 + 2 * count :])
        return [lines[2 + 2 * index].decode() for index in range(count)]
