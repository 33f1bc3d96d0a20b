"""The state of a simulated server: what runs, what was counted, whether it sleeps."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import count

import attrs

from twisted_vllm.simulator.replies import Work
from twisted_vllm.simulator.settings import SimulatorSettings

VERSION = "0.32.0-simulator"

#: how many words ``/detokenize`` can still name
_REMEMBERED_WORDS = 65_536


@attrs.define
class ModelCounts:
    """What one model did since the start: the values of its metrics."""

    running: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    stopped: int = 0
    cut_by_length: int = 0
    aborted: int = 0


class Engine:
    """Counts the work, gives ids and remembers words.

    Args:
        settings: what to be.
        seconds: tells the time, in seconds since the epoch.
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
        """How many requests run now."""
        return sum(counts.running for counts in self.counts.values())

    def now(self) -> int:
        """Return the time as vLLM's ``created`` has it: whole seconds since the epoch."""
        return int(self._seconds())

    def new_id(self) -> str:
        """Return 16 hex digits that were not given before."""
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
        """Count a running request as given up after so many steps: its client went away."""
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
        """Return the word of a token id, or a placeholder for an id that was not given lately."""
        return self._words.get(number, f"<{number}>")
