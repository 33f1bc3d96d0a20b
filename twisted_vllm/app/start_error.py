"""A failed start: one line with the reason, instead of a traceback."""

from __future__ import annotations

import errno
import sys
from types import TracebackType

#: what to do about an address that cannot be listened on, by the errno
_WHERE_TO_LISTEN = {
    errno.EADDRINUSE: " (a running program has it: stop that one, or choose another address with --listen or "
    "passthrough.listen)",
    errno.EACCES: " (ports below 1024 need more rights: start as root with --uid, or choose a higher port)",
    errno.EADDRNOTAVAIL: " (this machine does not have the address)",
}


class StartError(Exception):
    """The gateway cannot start. The message says why and is already in the log; twistd exits with it."""


def explain_start_errors() -> None:
    """Print one line for a `StartError` that ends the process; other errors keep their traceback.

    twistd itself cannot end a failed start with a message.
    """
    previous_hook = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, StartError):
            previous_hook(kind, error, traceback)
        elif sys.__stderr__ is not None:
            # sys.stderr is redirected to the log by now, which has the message
            print(f"vllm-passthrough cannot start: {error}", file=sys.__stderr__)

    sys.excepthook = show


def explain_address(error: BaseException | None) -> str:
    """Return why an address cannot be listened on, and what to do; `error` is a `CannotListenError`."""
    number = getattr(getattr(error, "socketError", None), "errno", None) or 0
    return f"{error}{_WHERE_TO_LISTEN.get(number, '')}"
