"""The messages between the processes of one gateway, and their frames.

A frame is four bytes of length, big-endian, and a list of envelopes in MessagePack. Whoever sends puts all messages of
one turn of the reactor into one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

import msgspec

#: the version of the frames and of the messages; processes with different ones cannot talk
VERSION = 1

#: the number of the supervisor, and what stands for every process but the sender and the supervisor
SUPERVISOR, OTHERS = -1, -2

#: the most bytes of a frame: more is no frame of ours
MAX_FRAME = 256 * 1024 * 1024

_LENGTH_BYTES = 4


class Kind(IntEnum):
    """What an envelope is for."""

    #: a message that nobody answers
    MESSAGE = 0
    #: a question; its answer has the same number
    QUESTION = 1
    #: the answer
    ANSWER = 2
    #: the answer that there is none; the payload is the reason, a string
    FAILURE = 3


class Envelope(msgspec.Struct, array_like=True, gc=False):
    """One message.

    Attributes:
        kind: what it is for.
        topic: what it is about.
        peer: to the supervisor, the number of the process that it is for; from it, of the process that sent it.
        number: of a question and its answer; 0 of other messages.
        payload: the message in MessagePack.
    """

    kind: int
    topic: str
    peer: int
    number: int
    payload: msgspec.Raw


class FrameError(Exception):
    """The bytes are no frames."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Envelope])

#: encodes messages
encode = _encoder.encode


def write_frame(envelopes: Sequence[Envelope]) -> bytes:
    """Return the frame of some envelopes."""
    body = _encoder.encode(envelopes)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader:
    """Puts frames together that come in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[Envelope]]:
        """Yield the envelopes of each frame that is complete.

        Raises:
            FrameError: the bytes are no frames.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(buffer[:_LENGTH_BYTES], "big")
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes")
            end = _LENGTH_BYTES + length
            if len(buffer) < end:
                return
            # a copy: envelopes keep parts of it as they are
            body = bytes(buffer[_LENGTH_BYTES:end])
            del buffer[:end]
            try:
                yield _decoder.decode(body)
            except msgspec.DecodeError as error:
                raise FrameError(str(error)) from None
