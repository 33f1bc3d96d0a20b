"""Logs failures of servers: one line a second for each server and cause, with the count of those left out."""

from __future__ import annotations

from twisted.logger import Logger

from twisted_vllm.context import RequestContext
from twisted_vllm.errors import GatewayError
from twisted_vllm.http.client.connect_errors import words_of

_log = Logger()

#: what happens to a request that a server failed
RETRIED = "and is tried again"
ANSWERED = "and the client gets the error"


def log_failure(
    context: RequestContext, server: str, reason: str, then: str, error: GatewayError | None = None
) -> None:
    """Log that a server failed a request.

    Args:
        context: the request.
        server: the server's name.
        reason: why: the code of an error, or ``status_503``.
        then: `RETRIED` or `ANSWERED`.
        error: the error, if no answer came.
    """
    # the connection to the server said why in a line of its own
    was_told = bool(getattr(error, "__notes__", ()))
    (_log.debug if was_told else _log.warn)(
        "Request {request_id} failed at {server} {then}: {reason}{words}",
        request_id=context.request_id.decode("ascii"),
        server=server,
        then=then,
        reason=reason,
        words="" if error is None else f", {words_of(error)}",
        once_a_second=f"{server} {reason}",
    )


def log_nowhere(group: str, error: GatewayError) -> None:
    """Log that a request found no server.

    Args:
        group: the name of its model group; empty for the default server's.
        error: what its client gets.
    """
    _log.warn(
        "No server takes requests for {group}: {reason}",
        group=group or "the default server",
        reason=error.message,
        once_a_second=f"{group} {error.code}",
    )
