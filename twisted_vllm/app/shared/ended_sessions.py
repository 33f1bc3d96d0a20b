"""Has all processes of a gateway know which sessions of the console were ended before their time."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from twisted_vllm.auth.sessions import EndedSessions
from twisted_vllm.workers.siblings import Siblings

ENDED = "console.ended"


class Ended(msgspec.Struct, array_like=True):
    """Sessions that were ended: the id of each, and when it would have ended, in Unix seconds."""

    sessions: list[tuple[str, float]]


def share_ended(siblings: Siblings, ended: EndedSessions, now: Callable[[], float]) -> Callable[[str, float], None]:
    """Hear of sessions that were ended at others; return what tells the others of one.

    Args:
        siblings: the other processes.
        ended: the sessions that this process knows to be ended.
        now: the time in Unix seconds.
    """

    def heard(message: Ended, _sender: int) -> None:
        for id, until in message.sessions:
            ended.end(id, until)

    siblings.on(ENDED, Ended, heard)
    siblings.on_joined(lambda number: siblings.send(number, ENDED, Ended(list(ended.current(now())))))
    return lambda id, until: siblings.share(ENDED, Ended([(id, until)]))
