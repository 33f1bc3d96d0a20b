"""Ways in which a request may end: how its client and its server play each, and how its row must tell it."""

from __future__ import annotations

import socket
from collections.abc import Callable

from tests.end_to_end.ledger_harness import CHAT_BODY, SPLICE, Act, Caller, Columns
from tests.end_to_end.process_harness import Connection
from twisted_vllm.usage.estimate import estimate_prompt

#: by a request's id: what its row says, but for what is as usual; None where it must have none
Told = dict[str, Columns | None]
Way = Callable[[Caller], Told]

#: how long the gateway waits for the server of the model ``hasty``, and for a place at that of ``busy``, in seconds
HASTY = 1.0
#: a route on which nothing is read of a body
UPLOAD = "/v1/files"

#: what a row says that has the server's word
COUNTED: Columns = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
#: what one says whose client has left
LEFT: Columns = {"outcome": "client_disconnected"}


class Ways:
    """A collection of ways.

    Attributes:
        ways: each by its name.
        acts: what the server does, by what the request asks of it.
    """

    def __init__(self) -> None:
        self.ways: dict[str, Way] = {}
        self.acts: dict[str, Act] = {}

    def way(self, act: Act | bytes | None = None, **acts: Act | bytes) -> Callable[[Way], Way]:
        """Keep a way, with what the server does; bytes are sent.

        Args:
            act: what it does with the request that has the way's name.
            acts: what it does with others.
        """

        def keep(made: Way) -> Way:
            self.ways[made.__name__] = made
            for name, each in {made.__name__: act, **acts}.items():
                if each is not None:
                    self.acts[name] = each if callable(each) else _sends(each)
            return made

        return keep


def guessed(body: bytes = CHAT_BODY, chunks: int = 0) -> Columns:
    """Return the columns of a row whose tokens were estimated."""
    # a stream's usage is asked for, and the estimate is of what goes to the server
    prompt = estimate_prompt(body + SPLICE if b'"stream":true' in body else body)
    return {
        "estimated": 1,
        "prompt_tokens": prompt,
        "completion_tokens": chunks,
        "total_tokens": prompt + chunks,
        "bytes_in": len(body),
    }


def _sends(data: bytes) -> Act:
    return lambda connection, times: connection.send(data)


def then_closes(data: bytes) -> Act:
    """Send these bytes, and close."""

    def act(connection: Connection, times: int) -> None:
        connection.send(data)
        connection.socket.shutdown(socket.SHUT_RDWR)

    return act


def then_waits(data: bytes) -> Act:
    """Send these bytes, and then nothing until the gateway closes."""

    def act(connection: Connection, times: int) -> None:
        connection.send(data)
        connection.read_to_end()

    return act
