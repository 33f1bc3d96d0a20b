"""The prefix of a prompt as chained hashes of its blocks: two prompts that begin alike have equal first hashes.

vLLM's prefix cache holds blocks of tokens, and a block's hash covers everything before it
(``vllm/v1/core/kv_cache_utils.py``, ``hash_block_tokens``). The gateway has no tokens, so its blocks are pieces of the
JSON text, in the order in which chat templates render the members. A conversation that goes on is spelled as before and
then longer, so its blocks stay equal; what is spelled in another way has other blocks, which costs a hit and no error.

Nothing is decoded but the top level, and at most `MOST` bytes are looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from struct import Struct

import msgspec

from twisted_vllm.bodies.checked_decoder import NO_VALUE
from twisted_vllm.bodies.held_body import HeldBody

#: bytes of the first blocks, and how many have the same size: after each `BLOCKS`, the prompt is twice as long and so
#: are the blocks. So the bytes after the last whole block are at most 1/32 of a long prompt, which has few blocks.
BLOCK = 128
BLOCKS = 32
#: bytes of a prompt that are looked at, and the blocks in them
MOST = 262_144
_SIZES = [BLOCK] * BLOCKS
while sum(_SIZES) < MOST:
    _SIZES += [sum(_SIZES) // BLOCKS] * BLOCKS
#: bytes of a prompt up to the end of each block; the first of no block
OFFSETS = (0, *accumulate(_SIZES))
MOST_BLOCKS = len(_SIZES)

#: the members that become the beginning of a prompt, in the order in which chat templates render them: Anthropic's
#: ``system`` and the Responses API's ``instructions`` stand before the messages, and tools before both
PARTS = (
    *("chat_template", "chat_template_kwargs", "documents", "tools", "system", "instructions"),
    *("messages", "prompt", "input", "token_ids", "query"),
)

_Prompt = msgspec.defstruct("_Prompt", [(name, msgspec.Raw, NO_VALUE) for name in ("cache_salt", *PARTS)], gc=False)
_decode = msgspec.json.Decoder(_Prompt).decode
_values = msgspec.structs.astuple

_whole_blocks = [Struct("".join(f"{size}s" for size in _SIZES[:count])).unpack_from for count in range(MOST_BLOCKS + 1)]


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
        parts = _parts_of_held(body)
    else:
        try:
            values = _values(_decode(body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ()
        parts = [bytes(value) for value in values if value is not NO_VALUE]
        if values[0] is NO_VALUE:
            parts.insert(0, b"")
    if len(parts) < 2:
        return ()
    own_salt = parts[0]
    text = parts[1] if len(parts) == 2 else b"".join(parts[1:])
    # the bracket or quote that ends the last member would stand elsewhere in a longer prompt
    size = len(text[: min(len(text) - 1, MOST)].rstrip())
    chained = hash((model, salt, own_salt))
    blocks = _whole_blocks[bisect_right(OFFSETS, size) - 1](text)
    return tuple([chained := hash((chained, block)) for block in blocks])


def _parts_of_held(body: HeldBody) -> list[bytes]:
    """Return the spelling of ``cache_salt`` and of the prompt's members; of equal keys, vLLM uses the last."""
    if not body.reads:
        return []
    found = {member.key: member for member in body.members}
    parts = [b"" if (salt := found.get("cache_salt")) is None else body.beginning(salt, MOST)]
    room = MOST + 1
    for name in PARTS:
        if room > 0 and (member := found.get(name)) is not None:
            parts.append(body.beginning(member, room))
            room -= len(parts[-1])
    return parts
