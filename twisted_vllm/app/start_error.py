"""A failed start: one line with the reason, instead of a traceback."""

from __future__ import annotations

import sys
from types import TracebackType


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
