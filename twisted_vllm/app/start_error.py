"""A failed start: one line that says why, in place of a traceback."""

from __future__ import annotations

import sys
from types import TracebackType


class StartError(Exception):
    """The gateway cannot start; the message says why and is in the log already. twistd ends with it."""


def explain_start_errors() -> None:
    """Have the interpreter print one line for a `StartError` that ends the process; other errors keep their traceback.

    twistd has no way of its own to end a failed start with a message.
    """
    shown_before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, StartError):
            shown_before(kind, error, traceback)
        elif sys.__stderr__ is not None:
            # sys.stderr is the log by now, which has the message
            print(f"vllm-passthrough cannot start: {error}", file=sys.__stderr__)

    sys.excepthook = show
