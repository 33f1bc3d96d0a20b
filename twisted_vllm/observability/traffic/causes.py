"""Why requests fail, in few words that the gateway chooses."""

from __future__ import annotations

from typing import Literal

#: who answered with an error, or ended the request
By = Literal["gateway", "server", "client", "other"]

#: causes that are no error code of the gateway, and what they mean
WORDS = {
    "client_disconnected": "The client left before its answer was complete.",
    "answer_cut": "The server broke off in the middle of an answer.",
    "stream_error": "The server reported an error in a stream that had begun.",
    "revoked": "The key was blocked or deleted while the request ran.",
    "cut": "Somebody ended the request while it was in flight.",
    "other": "Other causes.",
}
#: what a cause begins with that is a status of a server; the rest is the status
STATUS = "server_status_"


def cause_of(status: int, outcome: str, *, is_sent: bool) -> str:
    """Return why requests with these labels failed, or an empty text.

    Those that the gateway answered with an error of its own are counted by its code elsewhere.

    Args:
        status: the status that the client got; 0 without one.
        outcome: as in the log.
        is_sent: whether they were sent to a server.
    """
    if outcome == "completed":
        return f"{STATUS}{status}" if status >= 400 and is_sent else ""
    if outcome == "upstream_error":
        return "stream_error"
    if outcome == "upstream_failed":
        return "answer_cut" if status < 400 else ""
    return outcome if outcome in ("client_disconnected", "revoked", "cut") else ""


def meaning_of(cause: str) -> tuple[By, str]:
    """Return whose fault a cause is (``gateway``, ``server``, ``client`` or ``other``), and what it means."""
    if cause.startswith(STATUS):
        return "server", f"The server answered {cause.removeprefix(STATUS)}."
    by: dict[str, By] = {
        "client_disconnected": "client",
        "answer_cut": "server",
        "stream_error": "server",
        "other": "other",
    }
    return by.get(cause, "gateway"), WORDS.get(cause, "An error of the gateway's own.")


def is_failed(status: int, outcome: str) -> bool:
    """Return whether requests with these labels count as failed: all but those that were answered below 400."""
    return outcome != "completed" or status >= 400
