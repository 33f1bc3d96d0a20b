"""The simulator's words: text that is the same for the same prompt, counted by words."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice

import attrs

_OPENING = "This text is simulated: no model has read the prompt."

_SENTENCES = (
    "A real server would put its own words here.",
    "Every word counts as one token.",
    "The same prompt always gives the same text.",
    "Nothing that stands here should be taken for knowledge.",
    "The pace of these words can be set when the simulator is started.",
    "Point the gateway at a vLLM server to get an answer that means something.",
    "Only the shape of this answer is the one that vLLM gives.",
    "Usage is counted, logged and limited just as it would be for a model.",
)


@attrs.frozen
class Choice:
    """One generated text.

    Attributes:
        tokens: its words, each but the first with the space before it.
        finish_reason: ``stop``, or ``length`` where ``max_tokens`` cut it.
    """

    tokens: tuple[str, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """The words put together."""
        return "".join(self.tokens)


def count_tokens(text: str) -> int:
    """Return how many tokens a text has: its words."""
    return len(text.split())


def _sentences(seed: int) -> Iterator[tuple[str, ...]]:
    yield tuple(_OPENING.split())
    while True:
        # a linear congruential step (the constants are those of glibc's rand): cheap, and the same on every machine
        seed = (seed * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        yield tuple(_SENTENCES[(seed >> 16) % len(_SENTENCES)].split())


def _words(seed: int) -> Iterator[str]:
    for sentence in _sentences(seed):
        yield from sentence


def compose(
    prompt: str, limit: int, *, variant: int = 0, seed: int = 0, min_tokens: int = 0, ignore_eos: bool = False
) -> Choice:
    """Write the answer to a prompt.

    Args:
        prompt: what was asked; it only seeds the text.
        limit: the most tokens to write, at least 1.
        variant: which of several answers to the same prompt this is.
        seed: the caller's own seed.
        min_tokens: the fewest tokens to write.
        ignore_eos: whether to write on to ``limit``, as vLLM's parameter of this name does.

    Returns:
        The answer, which ends with a sentence unless ``limit`` cuts it.
    """
    start = zlib.crc32(f"{seed}:{variant}:{prompt}".encode(errors="surrogatepass"))
    natural = sum(len(sentence) for sentence in islice(_sentences(start), 3 + start % 3))
    length = limit if ignore_eos else max(natural, min_tokens)
    cut = ignore_eos or length > limit
    words = list(islice(_words(start), min(length, limit)))
    tokens = tuple(word if index == 0 else f" {word}" for index, word in enumerate(words))
    return Choice(tokens, "length" if cut else "stop")
