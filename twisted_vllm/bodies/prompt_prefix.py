"""The prefix of a prompt as chained hashes of its blocks: two prompts that begin alike have equal first hashes.

vLLM's prefix cache holds blocks of tokens, and a block's hash covers everything before it
(``vllm/v1/core/kv_cache_utils.py``, ``hash_block_tokens``). The gateway has no tokens, so its blocks are pieces of the
JSON text, in the order in which chat templates render the members. A conversation that goes on is spelled as before and
then longer, so its blocks stay equal; what is spelled in another way has other blocks, which costs a hit and no error.

A block also ends where a message ends. So the next turn of a conversation has all blocks of the turn before, and no
other conversation has, however short its first message is.

Nothing is decoded but the top level, and at most `MOST` bytes are looked at.
"""

from __future__ import annotations

from struct import Struct

import msgspec

from twisted_vllm.bodies.checked_decoder import NO_VALUE
from twisted_vllm.bodies.held_body import HeldBody

#: bytes of a prompt that are looked at
MOST = 262_144
#: bytes of a full block in the first `_FINE` bytes. Further on, it has 1/64 to 1/32 of what stands before it, so that
#: long prompts have few.
BLOCK = 256
_FINE = 16_384
_PER_LEVEL = 32
#: a block that ends with a message has at least this part of a full one; a shorter message is joined to the next
_LEAST = 16
#: the most blocks of a prompt; one of many short messages has so many, an ordinary one of `MOST` bytes some 200
MOST_BLOCKS = _LEAST * (_FINE // BLOCK + _PER_LEVEL * (MOST // _FINE - 1).bit_length())

#: the members that become the beginning of a prompt, in the order in which chat templates render them: Anthropic's
#: ``system`` and the Responses API's ``instructions`` stand before the messages, and tools before both
PARTS = (
    *("chat_template", "chat_template_kwargs", "documents", "tools", "system", "instructions"),
    *("messages", "prompt", "input", "token_ids", "query"),
)

_Prompt = msgspec.defstruct("_Prompt", [(name, msgspec.Raw, NO_VALUE) for name in ("cache_salt", *PARTS)], gc=False)
_decode = msgspec.json.Decoder(_Prompt).decode
_values = msgspec.structs.astuple


class _Level:
    """The part of a prompt up to an offset, where full blocks have one size.

    Attributes:
        end: the offset of its end.
        size: the bytes of a full block.
        least: the bytes of the shortest.
        split: by a number of full blocks, the function that returns so many of a text, from an offset.
    """

    __slots__ = ("end", "least", "size", "split")

    def __init__(self, end: int, size: int) -> None:
        self.end = end
        self.size = size
        self.least = size // _LEAST
        self.split = [Struct(f"{size}s" * count).unpack_from for count in range(end // size + 1)]


_LEVELS = [_Level(_FINE, BLOCK)]
while _LEVELS[-1].end < MOST:
    _LEVELS.append(_Level(2 * _LEVELS[-1].end, _LEVELS[-1].end // _PER_LEVEL))


def prompt_prefix(body: bytes | HeldBody, *, model: str = "", salt: str = "") -> tuple[int, ...]:
    """Return the hashes of the first blocks of the prompt in a JSON body; each depends on all before it.

    They hold in this process only.

    Args:
        body: the body, as the client sent it.
        model: the server's name of the model or LoRA adapter, which has a cache of its own.
        salt: the ``cache_salt`` that the gateway sends for the key; a client's own counts besides.

    Returns:
        At most `MOST_BLOCKS` hashes. None for a prompt of less than one block, a body without a prompt, and one that
        cannot be read.
    """
    if isinstance(body, HeldBody):
        own_salt, parts = _parts_of_held(body)
    else:
        try:
            values = _values(_decode(body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ()
        own_salt = bytes(values[0])
        parts = [bytes(value) for value in values[1:] if value is not NO_VALUE]
    if not parts:
        return ()
    text = parts[0] if len(parts) == 1 else b"".join(parts)
    # the bracket or quote that ends the last member would stand elsewhere in a longer prompt
    beginning = text[: min(len(text) - 1, MOST)].rstrip()
    # where a list of messages ends, one of them ends
    return _chained(beginning, text[-1:] == b"]" and beginning[-1:] == b"}", hash((model, salt, own_salt)))


def _chained(text: bytes, is_complete: bool, chained: int) -> tuple[int, ...]:
    """Return the hashes of a text's blocks.

    Args:
        text: the text.
        is_complete: whether a message ends where it ends.
        chained: the hash of what stands before it.
    """
    found: list[int] = []
    length, start = len(text), 0
    for level in _LEVELS:
        size, least, last = level.size, level.least, level.end
        while start < last:
            end = _end_of_message(text, start, least, last)
            is_end = end > 0
            if not is_end:
                end = length if length < last else last
                # the last message ends here in a longer conversation as well
                is_end = end < length or (is_complete and end - start >= least)
            if (count := (end - start) // size) > 0:
                for block in level.split[count](text, start):
                    chained = hash((chained, block))
                    found.append(chained)
                start += count * size
            if is_end and start < end:
                chained = hash((chained, text[start:end]))
                found.append(chained)
            start = end
            if end == length:
                return tuple(found)
    return tuple(found)


def _end_of_message(text: bytes, start: int, least: int, last: int) -> int:
    """Return the offset after the brace that ends a message; 0 if another message begins nowhere.

    Args:
        text: the text.
        start: the offset from which to look.
        least: the bytes from there that are too few for a block.
        last: the offset up to which to look.
    """
    first = start + least - 1
    # in a text, its quotes would be escaped
    role = text.find(b'"role"', first, last)
    if role < 0:
        return 0
    end = text.rfind(b"}", first, role) + 1
    if not end:
        # its own role, behind its content
        role = text.find(b'"role"', role + least, last)
        end = text.rfind(b"}", first, role) + 1 if role > 0 else 0
    return end


def _parts_of_held(body: HeldBody) -> tuple[bytes, list[bytes]]:
    """Return the spelling of ``cache_salt`` and of the prompt's members; of equal keys, vLLM uses the last."""
    if not body.reads:
        return b"", []
    found = {member.key: member for member in body.members}
    salt = found.get("cache_salt")
    parts: list[bytes] = []
    room = MOST + 1
    for name in PARTS:
        if room > 0 and (member := found.get(name)) is not None:
            parts.append(body.beginning(member, room))
            room -= len(parts[-1])
    return b"" if salt is None else body.beginning(salt, MOST), parts
