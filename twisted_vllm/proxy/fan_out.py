"""The answer to an act that went to several servers, such as ``/sleep``: what each of them said, in one document.

The status tells a program that looks at nothing else. It is the servers' own if they agree, 200 if each of them did it
in its own way, and else 502: a status below 300 would pass for success where half a fleet did not do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from twisted_vllm.errors import GatewayError, NotAllServers

#: the maximum size of the body of one server's answer, in bytes; what vLLM says to such an act is short
MAX_ANSWER = 262_144


class ServerAnswer(msgspec.Struct, frozen=True, gc=False):
    """What one server said.

    Attributes:
        server: its name.
        status: its status; None if it did not answer.
        body: its body: the value if it is JSON, else the text; None if it is empty.
        error: why it did not answer, as in the gateway's errors; None if it did.
    """

    server: str
    status: int | None
    body: Any = None
    error: dict[str, str] | None = None


class _Document(msgspec.Struct, frozen=True, omit_defaults=True):
    servers: list[ServerAnswer]
    error: dict[str, str | None] | None = None


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def answered(server: str, status: int, body: bytes) -> ServerAnswer:
    """Return what a server said in a whole response."""
    if not body:
        return ServerAnswer(server, status)
    try:
        return ServerAnswer(server, status, _decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ServerAnswer(server, status, body.decode("utf-8", "replace"))


def unanswered(server: str, error: GatewayError) -> ServerAnswer:
    """Return that a server gave no answer, and why."""
    return ServerAnswer(server, None, error={"code": error.code, "message": error.message})


def joined(answers: Sequence[ServerAnswer]) -> tuple[int, bytes, NotAllServers | None]:
    """Return the status and the JSON of the answer to the client, and its error.

    Args:
        answers: what each server said, at least one.

    Returns:
        The status; the document, ``{"servers": [{"server", "status", "body", "error"}, …]}`` and with an error that
        too; and the error, if the servers do not agree or did not answer.
    """
    statuses = {each.status for each in answers}
    status = answers[0].status
    if len(statuses) == 1 and status is not None:
        return status, _encode(_Document(list(answers))), None
    missing = [each for each in answers if not _is_success(each.status)]
    if not missing:
        return 200, _encode(_Document(list(answers))), None
    error = NotAllServers(
        f'{len(missing)} of {len(answers)} servers did not do this; "servers" tells what each of them said.'
    )
    told = {"message": error.message, "type": error.type, "param": None, "code": error.code}
    return error.status, _encode(_Document(list(answers), told)), error


def _is_success(status: int | None) -> bool:
    return status is not None and 200 <= status < 300
