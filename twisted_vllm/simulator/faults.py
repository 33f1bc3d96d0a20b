"""Faults on request, to test what stands in front of the server.

On all routes, the header ``x-simulate`` takes one or more of these, with commas between them:

``slow-head=SECONDS``
    wait before sending anything.
``status=NNN``
    answer with this status (400 to 599) and an error in vLLM's shape.
``hang``
    send nothing until the client closes the connection.
``close``
    close the connection before the first byte.
``garbage``
    send bytes that are not HTTP, and close the connection.
``truncate``
    send the headers and about half of the body, and close the connection in order (FIN).
``close-mid-body``
    the same, but reset the connection (RST), like a server that crashed.
``hang-mid-body``
    send the headers and about half of the body, and then nothing.
``bad-chunk``
    send the headers, about half of the body and a chunk with an invalid size, and close the connection.
``error-event``
    in a stream, send half of the tokens and the error event of a failed engine, and end in order; else answer 500.

The last eight exclude each other. A stream that breaks off has sent at least its first token.
"""

from __future__ import annotations

import math
from enum import StrEnum

import attrs

from twisted_vllm.simulator.messages import ApiError

HEADER = "x-simulate"


class Ending(StrEnum):
    """How a response fails."""

    HANG = "hang"
    CLOSE = "close"
    GARBAGE = "garbage"
    TRUNCATE = "truncate"
    CLOSE_MID_BODY = "close-mid-body"
    HANG_MID_BODY = "hang-mid-body"
    BAD_CHUNK = "bad-chunk"
    ERROR_EVENT = "error-event"


@attrs.frozen
class Faults:
    """The faults of one response.

    Attributes:
        slow_head: the seconds to wait before the response.
        status: the status of an error in its place.
        ending: how it fails.
    """

    slow_head: float = 0.0
    status: int | None = None
    ending: Ending | None = None


NO_FAULTS = Faults()


def parse_faults(header: str) -> Faults:
    """Parse the header ``x-simulate``, which may be empty.

    Raises:
        ApiError: a fault does not exist, has an invalid value, or excludes another one.
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
            raise ApiError(f"{HEADER}: {item!r} is not a fault that the simulator has; it has {known}", param=HEADER)
        elif found.ending is not None:
            raise ApiError(f"{HEADER}: {found.ending} and {name} cannot be had together", param=HEADER)
        else:
            found = attrs.evolve(found, ending=Ending(name))
    return found


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ApiError(f"{HEADER}: slow-head needs seconds of 0 or more, as in slow-head=2.5", param=HEADER)
    return seconds


def _status(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and 400 <= int(value) <= 599):
        raise ApiError(f"{HEADER}: status needs a number from 400 to 599, as in status=503", param=HEADER)
    return int(value)
