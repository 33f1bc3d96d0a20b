"""A large body: held as it arrives and, if it is JSON, read and checked in steps."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

from twisted_vllm.bodies.held_pieces import HeldPieces, Rope
from twisted_vllm.bodies.json_reader import JsonReader, MalformedJson
from twisted_vllm.bodies.members import Member, undetermined
from twisted_vllm.errors import BodyTooComplex, GatewayError
from twisted_vllm.field_policy.policy import FieldPolicy

#: bytes of one member that may be looked at again
MAX_AGAIN = 65_536


class HeldBody:
    """One body. ``len()`` is its size in bytes.

    Attributes:
        is_no_object: whether vLLM certainly refuses it as JSON, or takes it for something other than an object.
    """

    __slots__ = ("_error", "_pieces", "_reader", "is_no_object")

    def __init__(self, *, is_json: bool) -> None:
        """Make an empty body.

        Args:
            is_json: whether to read it as JSON.
        """
        self._pieces = pieces = HeldPieces()
        self._reader = JsonReader(pieces.read) if is_json else None
        self._error: GatewayError | None = None
        self.is_no_object = False

    def __len__(self) -> int:
        return len(self._pieces)

    # while it arrives

    def append(self, data: bytes) -> None:
        """Hold a piece."""
        self._pieces.append(data)

    @property
    def reads(self) -> bool:
        """Whether pieces must be read: it is JSON, and nothing is wrong with it."""
        return self._reader is not None and self._error is None

    def read(self, data: bytes) -> Iterator[None]:
        """Read a piece that is held, in bounded steps. What is wrong with it is told by `checked_members`."""
        reader = self._reader
        if reader is None or self._error is not None:
            return
        try:
            yield from reader.feed(data)
        except (MalformedJson, BodyTooComplex) as error:
            self._fail(error)

    def check(self, policy: FieldPolicy | None) -> Iterator[None]:
        """Check the complete body by the policy of its caller, in bounded steps."""
        reader = self._reader
        if reader is None or self._error is not None:
            return
        try:
            reader.finish()
            if policy is not None:
                for member in reader.members:
                    if policy.looks_at(member.key, member.value):
                        yield from policy.checking(member.key, member.value, member.end - member.start)
        except (MalformedJson, GatewayError) as error:
            self._fail(error)
        except ValueError:
            self._fail(BodyTooComplex("The body has too many values to be checked. Send several requests."))

    def _fail(self, error: MalformedJson | GatewayError) -> None:
        if isinstance(error, MalformedJson):
            self.is_no_object = error.certain
            error = undetermined(str(error))
        # a copy: its traceback would refer to this body, and keep it until the next garbage collection
        self._error = copy(error)
        # what was built
        self._reader = None

    # once it is complete

    def checked_members(self) -> list[Member]:
        """Return the members at its top level, with their offsets in bytes.

        Raises:
            ModelUndetermined: it is not one JSON object in UTF-8.
            BodyTooComplex: it has too many values, or is nested too deeply.
            FieldNotAllowed: the policy of the caller does not allow a field.
        """
        if self._error is not None:
            raise copy(self._error)
        return self.members

    @property
    def _json(self) -> JsonReader:
        assert self._reader is not None, "it was not read"
        return self._reader

    @property
    def members(self) -> list[Member]:
        """The members at its top level, with their offsets in bytes."""
        return self._json.members

    @property
    def opened(self) -> int:
        """The offset just after the brace that begins it."""
        return self._json.opened

    @property
    def depth(self) -> int:
        """The levels of its objects and lists."""
        return self._json.depth

    @property
    def has_half(self) -> bool:
        """Whether a text holds half a pair of surrogates."""
        return self._json.has_half

    def spelled(self, member: Member) -> bytes | None:
        """Return the bytes of a member's value; None if there are more than `MAX_AGAIN`."""
        if member.end - member.start > MAX_AGAIN:
            return None
        return self._pieces.read(member.start, member.end)

    def beginning(self, member: Member, most: int) -> bytes:
        """Return the first bytes of a member's value, at most so many."""
        return self._pieces.read(member.start, min(member.end, member.start + most))

    def whole(self) -> bytes:
        """Return all bytes, copied: for a body that turned out to be small."""
        return self._pieces.read(0, len(self))

    def rope(self, parts: tuple[bytes | tuple[int, int], ...] | None = None) -> Rope:
        """Return what is sent of it.

        Args:
            parts: new bytes, and spans of the body by their offsets; None for all of it.
        """
        if parts is None:
            parts = ((0, len(self)),)
        reader = self._reader
        if reader is None:
            return Rope(self._pieces, parts)
        return Rope(self._pieces, parts, reader.commas, reader.media, reader.media_size)
