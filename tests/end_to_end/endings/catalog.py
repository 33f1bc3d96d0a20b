"""How a request may end: what its client and its server do, and the row that the ledger must have for it."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.end_to_end.ledger_harness import CHAT_BODY, Caller, Columns, Script
from tests.end_to_end.process_harness import Connection
from twisted_vllm.config.settings import Limits
from twisted_vllm.usage.estimate import estimate_prompt

#: by a request's id: the columns of its row that differ from the usual ones; None where it must have no row
ExpectedRows = dict[str, Columns | None]
Ending = Callable[[Caller], ExpectedRows]

#: seconds that the gateway waits for the server of the model ``hasty``, and for the queue before that of ``busy``
HASTY = 1.0
#: a route whose request bodies the gateway does not read
UPLOAD = "/v1/files"

#: the row of a request whose usage the server reported
REPORTED: Columns = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
#: the row of a request whose client disconnected
DISCONNECTED: Columns = {"outcome": "client_disconnected"}


class Endings:
    """A collection of endings.

    Attributes:
        endings: each by its name.
        scripts: what the server does, by the name that a request gives.
    """

    def __init__(self) -> None:
        self.endings: dict[str, Ending] = {}
        self.scripts: dict[str, Script] = {}

    def ending(self, script: Script | bytes | None = None, **scripts: Script | bytes) -> Callable[[Ending], Ending]:
        """Add an ending, with what the server does; bytes are sent.

        Args:
            script: what it does with the request that has the ending's name.
            scripts: what it does with other requests, by their names.
        """

        def add(ending: Ending) -> Ending:
            self.endings[ending.__name__] = ending
            for name, each in {ending.__name__: script, **scripts}.items():
                if each is not None:
                    self.scripts[name] = each if callable(each) else _sends(each)
            return ending

        return add


def estimated(body: bytes = CHAT_BODY, chunks: int = 0) -> Columns:
    """Return the columns of a row whose tokens were estimated."""
    prompt = estimate_prompt(body)
    return {
        "estimated": 1,
        "prompt_tokens": prompt,
        "completion_tokens": chunks,
        "total_tokens": prompt + chunks,
        "bytes_in": len(body),
    }


def generated(body: bytes = CHAT_BODY, least: int = 0) -> Columns:
    """Return the columns of a row whose generated tokens were estimated from its time, at least so many."""
    tokens = estimated(body)
    prompt = tokens["prompt_tokens"]
    most = Limits().assumed_output_tokens + 1
    return {**tokens, "completion_tokens": range(least, most), "total_tokens": range(prompt + least, prompt + most)}


def _sends(data: bytes) -> Script:
    return lambda connection, times: connection.send(data)


def then_closes(data: bytes) -> Script:
    """Send these bytes, and close."""

    def script(connection: Connection, times: int) -> None:
        connection.send(data)
        connection.socket.shutdown(socket.SHUT_RDWR)

    return script


def then_waits(data: bytes) -> Script:
    """Send these bytes, and then nothing until the gateway closes."""

    def script(connection: Connection, times: int) -> None:
        connection.send(data)
        connection.read_to_end()

    return script
