"""The simulated engine: its state and counts, and the text that it writes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import count, islice

import attrs

from twisted_vllm.simulator.messages import Work
from twisted_vllm.simulator.settings import SimulatorSettings

VERSION = "0.32.0-simulator"

#: how many words ``/detokenize`` remembers
_REMEMBERED_WORDS = 65_536

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


@attrs.define
class ModelCounts:
    """The metrics of one model, since the start."""

    running: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    stopped: int = 0
    cut_by_length: int = 0
    aborted: int = 0


class Engine:
    """Counts work, makes ids and remembers words.

    Args:
        settings: what to simulate.
        seconds: returns the time, in seconds since 1970.
    """

    def __init__(self, settings: SimulatorSettings, seconds: Callable[[], float]) -> None:
        self.settings = settings
        self.sleep_level: int | None = None
        self.counts = {model: ModelCounts() for model in settings.models}
        self._seconds = seconds
        self._started = int(seconds() * 1000) & 0xFFFF_FFFF
        self._serial = count(1)
        self._words: dict[int, str] = {}

    @property
    def running(self) -> int:
        """The number of running requests."""
        return sum(counts.running for counts in self.counts.values())

    def now(self) -> int:
        """Return the time in whole seconds since 1970, for vLLM's ``created``."""
        return int(self._seconds())

    def new_id(self) -> str:
        """Return a new id of 16 hex digits."""
        return f"{self._started:08x}{next(self._serial) & 0xFFFF_FFFF:08x}"

    def begin(self, work: Work) -> None:
        """Count a request as running."""
        counts = self.counts[work.model]
        counts.running += 1
        counts.prompt_tokens += work.prompt_tokens

    def finish(self, work: Work) -> None:
        """Count a running request as done."""
        counts = self.counts[work.model]
        counts.running -= 1
        counts.generation_tokens += work.completion_tokens
        if work.finish_reason == "length":
            counts.cut_by_length += 1
        else:
            counts.stopped += 1

    def abort(self, work: Work, steps: int) -> None:
        """Count a running request as aborted after so many steps."""
        counts = self.counts[work.model]
        counts.running -= 1
        counts.aborted += 1
        if work.steps:
            counts.generation_tokens += work.completion_tokens * steps // work.steps

    def word_id(self, word: str) -> int:
        """Return a word's token id, the same in every process, and remember the word."""
        number = zlib.crc32(word.encode(errors="surrogatepass"))
        if number not in self._words and len(self._words) >= _REMEMBERED_WORDS:
            self._words.pop(next(iter(self._words)))
        self._words[number] = word
        return number

    def word(self, number: int) -> str:
        """Return the word of a token id, or a placeholder if it is not remembered."""
        return self._words.get(number, f"<{number}>")


@attrs.frozen
class Choice:
    """A generated text.

    Attributes:
        tokens: its words, all but the first with a space in front.
        finish_reason: ``stop``, or ``length`` if ``max_tokens`` cut it.
    """

    tokens: tuple[str, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.tokens)


def count_tokens(text: str) -> int:
    """Return how many tokens a text has. A token is a word."""
    return len(text.split())


def _sentences(seed: int) -> Iterator[tuple[str, ...]]:
    yield tuple(_OPENING.split())
    while True:
        # A linear congruential generator, with the constants of glibc's rand: the same on every machine.
        seed = (seed * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        yield tuple(_SENTENCES[(seed >> 16) % len(_SENTENCES)].split())


def _words(seed: int) -> Iterator[str]:
    for sentence in _sentences(seed):
        yield from sentence


def compose(
    prompt: str, limit: int, *, variant: int = 0, seed: int = 0, min_tokens: int = 0, ignore_eos: bool = False
) -> Choice:
    """Write the text for a prompt.

    Args:
        prompt: seeds the text.
        limit: the most tokens to write, at least 1.
        variant: the number of the choice, if there are several.
        seed: the caller's seed.
        min_tokens: the fewest tokens to write.
        ignore_eos: whether to write until `limit`, as vLLM's parameter does.

    Returns:
        The text, which ends with a sentence unless `limit` cuts it.
    """
    start = zlib.crc32(f"{seed}:{variant}:{prompt}".encode(errors="surrogatepass"))
    natural = sum(len(sentence) for sentence in islice(_sentences(start), 3 + start % 3))
    length = limit if ignore_eos else max(natural, min_tokens)
    cut = ignore_eos or length > limit
    words = list(islice(_words(start), min(length, limit)))
    tokens = tuple(word if index == 0 else f" {word}" for index, word in enumerate(words))
    return Choice(tokens, "length" if cut else "stop")
