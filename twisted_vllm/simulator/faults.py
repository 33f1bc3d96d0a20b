"""Faults on request: what the header ``x-simulate`` makes the simulator do, so that a gateway can be tried on it.

The header holds one or more of these, with commas between them; all routes take it, ``/health`` too:

``slow-head=SECONDS``
    waits before anything is sent.
``status=NNN``
    answers with this status (400 to 599) and an error in vLLM's shape, in place of the real answer.
``hang``
    takes the request and sends nothing, until the client goes away.
``close``
    closes the connection before the first byte.
``garbage``
    sends bytes that are no HTTP, and closes the connection.
``truncate``
    sends the head and about half of the body, then closes the connection in order (FIN).
``close-mid-body``
    the same, but resets the connection (RST): what a crashed server looks like.
``hang-mid-body``
    sends the head and about half of the body, then nothing more.
``bad-chunk``
    sends the head and about half of the body, then a chunk without a valid size, and closes the connection.
``error-event``
    a stream sends half of its tokens, then an error event as vLLM does when its engine fails, and ends well;
    any other answer is vLLM's 500.

Of the last eight only one can be asked for. A stream that breaks off has sent at least its first token.
"""

from __future__ import annotations

import math
from enum import StrEnum

import attrs

from twisted_vllm.simulator.refusals import Refusal

HEADER = "x-simulate"


class Ending(StrEnum):
    """How an answer goes wrong."""

    HANG = "hang"
    CLOSE = "close"
    GARBAGE = "garbage"
    TRUNCATE = "truncate"
    CLOSE_MID_BODY = "close-mid-body"
    HANG_MID_BODY = "hang-mid-body"
    BAD_CHUNK = "bad-chunk"
    ERROR_EVENT = "error-event"

    @property
    def is_mid_body(self) -> bool:
        """Whether the answer begins well."""
        return self not in (Ending.HANG, Ending.CLOSE, Ending.GARBAGE)


@attrs.frozen
class Faults:
    """What was asked for.

    Attributes:
        slow_head: seconds to wait before the answer.
        status: the status to answer with.
        ending: how the answer goes wrong.
    """

    slow_head: float = 0.0
    status: int | None = None
    ending: Ending | None = None


NO_FAULTS = Faults()


def parse_faults(header: str) -> Faults:
    """Read the header ``x-simulate``; empty asks for nothing.

    Raises:
        Refusal: it names no fault that there is, or cannot be done.
    """
    found = NO_FAULTS
    for item in filter(None, map(str.strip, header.split(","))):
        name, _, value = item.partition("=")
        if name == "slow-head":
            found = attrs.evolve(found, slow_head=_seconds(value))
        elif name == "status":
            found = attrs.evolve(found, status=_status(value))
        elif value or name not in set(Ending):
            known = ", ".join(["slow-head=SECONDS", "status=NNN", *Ending])
            raise Refusal(f"{HEADER}: {item!r} is not a fault that the simulator has; it has {known}", param=HEADER)
        elif found.ending is not None:
            raise Refusal(f"{HEADER}: {found.ending} and {name} cannot be had together", param=HEADER)
        else:
            found = attrs.evolve(found, ending=Ending(name))
    return found


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise Refusal(f"{HEADER}: slow-head needs seconds of 0 or more, as in slow-head=2.5", param=HEADER)
    return seconds


def _status(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and 400 <= int(value) <= 599):
        raise Refusal(f"{HEADER}: status needs a number from 400 to 599, as in status=503", param=HEADER)
    return int(value)
