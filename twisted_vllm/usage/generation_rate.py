"""How fast a server generates, as its finished requests show it, to charge for requests that are cut.

A request that ends before its server reported the usage has generated something that nobody counted. vLLM gives each
running choice about one token per step, so ``choices * seconds * tokens per second`` tells how much. The rate depends
on model, machine and load, so it is learned from the finished requests of the same server and model: their tokens
divided by their time. The times of single events would tell more on paper, but a busy server sends its events in
bursts.

A tenant may send what looks slow, to make his own cuts cheap. Therefore

- a sample has one choice, at least `MIN_TOKENS`, and at most `MAX_PROMPT_SHARE` tokens of the prompt for each of them;
- the fast quarter of the samples counts, not their mean;
- a fast sample raises the rate that is remembered by up to a quarter, a slow one lowers it by a twentieth, and the
  estimate never falls below half of it.
"""

from __future__ import annotations

from collections import deque

import msgspec

from twisted_vllm.bounded_cache import BoundedCache

#: tokens per second of one choice before anything was learned: more than nearly all models reach on today's
#: accelerators, so that nobody gains by never finishing a request
DEFAULT_RATE = 500.0
#: samples kept per server and model
MAX_SAMPLES = 32
#: the samples that count if fewer ran at the same time
FEW_SAMPLES = 8
#: streams that must be known before the wait for the first token is deducted
MIN_WAITS = 4
#: the least tokens of a sample: fewer say little about the rate
MIN_TOKENS = 16
#: the least seconds of a sample
MIN_SECONDS = 0.01
#: the most tokens of the prompt for each generated token of a sample
MAX_PROMPT_SHARE = 64
#: choices that a server runs at a time at most (`vllm serve --max-num-seqs`)
MAX_AT_ONCE = 1_024
#: kept pairs of a server and a model
MAX_RATES = 1_000
#: a longer name of a model, in characters, shares the entry of the empty name
MAX_MODEL_LENGTH = 256

#: how much faster a sample may make the remembered rate, how much slower, and the part of it that the estimate keeps
_FASTER, _SLOWER, _KEPT = 1.25, 0.95, 0.5
#: how many times more or less tokens than its time a stream's events may tell
_FAR = 2.0
#: bytes of a JSON response that are no text, and bytes per token of the rest, more than most texts have
_ENVELOPE, _TOKEN_BYTES = 1_024, 8
#: bytes of text per token of an English text, and the most for which an event is taken for one of a single token
_TEXT_BYTES, _ONE_TOKEN = 4, 12


class Sample(msgspec.Struct, frozen=True, gc=False):
    """A finished request with one choice.

    Attributes:
        tokens: its generated tokens.
        seconds: from when it was sent until its answer was generated.
        ended: when that was, in Unix seconds.
        prompt: the tokens of its prompt.
        waited: seconds to its first event; 0 if it did not stream.
        events: the events of its stream with content; 0 if it did not stream, or if they say nothing.
    """

    tokens: int
    seconds: float
    ended: float
    prompt: int
    waited: float = 0.0
    events: int = 0


class GenerationRate:
    """How fast one model generates on one server."""

    __slots__ = ("_fast", "_samples")

    def __init__(self) -> None:
        self._fast = 0.0
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)

    @property
    def learned(self) -> bool:
        """Whether there was any sample."""
        return bool(self._samples)

    def learn(
        self, tokens: int, seconds: float, ended: float, prompt: int, waited: float = 0.0, events: int = 0
    ) -> None:
        """Learn from a finished request with one choice; the arguments are those of `Sample`."""
        if tokens < MIN_TOKENS or seconds < MIN_SECONDS or prompt > MAX_PROMPT_SHARE * tokens:
            return
        self._samples.append(Sample(tokens, seconds, ended, prompt, waited, events))
        rate, fast = tokens / seconds, self._fast
        if rate < fast:
            fast *= _SLOWER
            self._fast = rate if rate > fast else fast
        else:
            fast *= _FASTER
            self._fast = rate if rate < fast or not fast else fast

    def tokens_per_event(self) -> float | None:
        """Return how many tokens an event of a stream has: the median of the samples, at least 1; None without any."""
        # the first event has one token, whatever `vllm serve --stream-interval` says
        known = sorted((each.tokens - 1) / (each.events - 1) for each in self._samples if each.events > 1)
        return max(1.0, known[len(known) // 2]) if known else None

    def tokens(self, sent: float, until: float, prompt: int) -> float:
        """Return how many tokens one choice generates in a time; `DEFAULT_RATE` counts if nothing was learned.

        Args:
            sent: when the request was sent, in Unix seconds.
            until: when it was cut.
            prompt: the tokens of its prompt.
        """
        seconds = until - sent
        if not self._samples:
            return max(0.0, seconds * DEFAULT_RATE)
        wait = self._wait(prompt)
        recent = [each for each in self._samples if each.ended >= sent]
        if len(recent) < FEW_SAMPLES:
            recent = list(self._samples)[-FEW_SAMPLES:]
        rates = sorted((each.tokens / max(each.seconds - wait, each.seconds / 2) for each in recent), reverse=True)
        return max(0.0, (seconds - wait) * max(rates[len(rates) // 4], self._fast * _KEPT))

    def _wait(self, prompt: int) -> float:
        """Return how long a request waits for its first token at least, in seconds.

        Others' waits count only as far as their prompts were no longer.
        """
        waits = [each.waited * min(1.0, (prompt + 1) / (each.prompt + 1)) for each in self._samples if each.waited]
        return min(waits) if len(waits) >= MIN_WAITS else 0.0


class GenerationRates:
    """The rates of all servers and models. ``len()`` is the number of them."""

    def __init__(self) -> None:
        self._rates: BoundedCache[tuple[str, str], GenerationRate] = BoundedCache(MAX_RATES, MAX_MODEL_LENGTH)

    def __len__(self) -> int:
        return len(self._rates)

    def to_learn(self, server: str, model: str) -> GenerationRate:
        """Return the rate of a model on a server, a new one if there is none; the oldest makes room."""
        key = (server, model if len(model) <= MAX_MODEL_LENGTH else "")
        rate = self._rates.get(key)
        if rate is None:
            rate = GenerationRate()
            self._rates.keep(key, rate, len(key[1]))
        return rate

    def of(self, server: str, model: str) -> GenerationRate:
        """Return the rate of a model on a server, or that of another model there if it has none."""
        rate = self._rates.get((server, model if len(model) <= MAX_MODEL_LENGTH else ""))
        if rate is not None:
            return rate
        others = (rate for (name, _), rate in self._rates.newest_first() if name == server)
        return next(others, _UNKNOWN)


_UNKNOWN = GenerationRate()


class UncountedAnswer(msgspec.Struct, frozen=True, gc=False):
    """What is known of an answer whose usage the server did not report.

    Attributes:
        choices: the number of requested choices.
        bound: the most tokens that were reserved for the answer.
        limited: whether the client set this limit; else it may generate more.
        prompt: the tokens of the prompt, estimated.
        sent: when the request was sent, in Unix seconds.
        until: when its connection was closed, or when a JSON answer began: nothing is generated after that.
        events: the events of a stream with content that came.
        interval: the least tokens of an event that the client requested.
        paused: whether the client read too slowly, so that more may have been generated than came.
        size: the size of a JSON answer that began, in bytes; 0 if there is none.
        complete: whether it was not cut.
        text: the bytes of text in these events; 0 if they cannot be told.
        reported: the tokens that the server counted in the events that came; None if it counted none.
    """

    choices: int
    bound: int
    limited: bool
    prompt: int
    sent: float
    until: float
    events: int = 0
    interval: int = 1
    paused: bool = False
    size: int = 0
    complete: bool = False
    text: int = 0
    reported: int | None = None


def generated_tokens(answer: UncountedAnswer, rate: GenerationRate) -> int:
    """Return how many tokens were probably generated for an answer.

    At least what came counts, and at most what was reserved. If the client set no limit, the reservation is an
    assumption: it bounds what the time tells, but not what came.

    Args:
        answer: what is known of the answer.
        rate: how fast its server generates.
    """
    bound, events = answer.bound, answer.events
    timed = rate.tokens(answer.sent, answer.until, answer.prompt) * min(answer.choices, MAX_AT_ONCE)
    counted = _tokens_of_events(answer, rate, timed) if events else 0.0
    if answer.complete or (events and not answer.paused):
        # all that was generated came, unless some tokens send no event; or else the server was slow for once
        timed = 0.0 if answer.complete or not rate.learned else timed / _FAR
    elif answer.size:
        timed = max(timed, (answer.size - _ENVELOPE) / _TOKEN_BYTES)
    tokens = max(counted, min(timed, bound))
    return round(min(tokens, max(bound, events, answer.reported or 0)) if answer.limited else tokens)


def _tokens_of_events(answer: UncountedAnswer, rate: GenerationRate, timed: float) -> float:
    """Return the tokens of a stream's events, where `timed` is what its time tells."""
    events, reported = answer.events, answer.reported
    if reported is not None and answer.complete:
        return reported
    known = rate.tokens_per_event()
    if reported is not None:
        # of each choice, the tokens since its last event have not come
        each = max(known or 1.0, answer.interval)
        return max(reported, min(timed, reported + (each - 1) * answer.choices))
    if known is None:
        # no stream of this server ended yet: it may put many tokens into an event (`vllm serve --stream-interval`)
        known = answer.text / events / _TEXT_BYTES if answer.text > _ONE_TOKEN * events else 1.0
    each = max(known, answer.interval)
    if each == 1.0:
        return events
    # the first event of a choice has one token, and the tokens since its last event have not come
    least = (events - answer.choices) * each + answer.choices
    counted = min(max(timed, least), events * each)
    return max(events, min(counted, timed * _FAR))
