"""The mixed load of the pictures."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.client import Target
from benchmarks.console.pictures.household import MEMBERS_KEY, SHOWN_KEY
from benchmarks.dashboards.mixed_load import Kind, Outcome, apply_kinds

#: after the load was measured in full, it goes on for so many seconds at most while pictures are taken
LONGEST_SHOOTING = 900.0
_QUESTIONS = (
    "What should I see in Paris in two days?",
    "Explain the tides to a child of eight.",
    "Write a short letter about a night train.",
    "Which rivers meet the sea near Hamburg?",
    "Translate 'the first snow' into five languages.",
    "Summarize the history of the violin.",
    "List ten words for rain, and say where they are used.",
)
_SYSTEM = "You are a patient assistant who answers in plain words, briefly, and says when it does not know. "

_Made = tuple[str, dict[str, object], Sequence[str]]


def _chat(
    model: str, least: int, most: int, *, stream: bool = True, lines: Sequence[str] = (), customers: Sequence[str] = ()
) -> Callable[[random.Random], _Made]:
    def make(chance: random.Random) -> _Made:
        body: dict[str, object] = {
            "model": model,
            "messages": [
                {"role": "system", "content": _SYSTEM * chance.randint(1, 4)},
                {"role": "user", "content": chance.choice(_QUESTIONS)},
            ],
            "max_tokens": chance.randint(least, most),
            # the models of a laboratory end early otherwise, or never
            "ignore_eos": True,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if customers:
            body["user"] = chance.choice(customers)
        return "/v1/chat/completions", body, lines

    return make


def _completion(model: str) -> Callable[[random.Random], _Made]:
    def make(chance: random.Random) -> _Made:
        body = {"model": model, "prompt": chance.choice(_QUESTIONS), "max_tokens": chance.randint(4, 40)}
        return "/v1/completions", body, ()

    return make


def kinds(model: str, other: str) -> list[Kind]:
    """Return the kinds of clients.

    Args:
        model: of the servers that were given.
        other: of the simulated ones, whose answers a header makes fail.
    """

    def tags(*names: str) -> list[str]:
        return [f"x-litellm-tags: {','.join(names)}"]

    return [
        Kind("web", SHOWN_KEY, 0.5, _chat(model, 20, 160, customers=("acme", "acme", "globex"), lines=tags("web"))),
        Kind("app", "assistant-app", 0.3, _chat(model, 10, 60, lines=tags("app", "v2"))),
        Kind("long", "search-answers", 0.05, _chat(model, 300, 700), swells=False),
        Kind("staging", "assistant-staging", 0.05, _chat(model, 8, 30, stream=False)),
        Kind("completions", "eve-notebook", 0.12, _completion(model)),
        Kind("notebook", MEMBERS_KEY, 0.15, _chat(model, 20, 120)),
        Kind("laptop", "ada-laptop", 0.05, _chat(other, 50, 200)),
        Kind("small budget", "bob-notebook", 0.1, _chat(other, 60, 200)),
        Kind("job", "nightly-job", 0.12, _chat(model, 8, 20, stream=False), swells=False),
        Kind("other web", SHOWN_KEY, 0.4, _chat(other, 60, 300, customers=("globex", "acme"))),
        Kind("evaluation", "ivan-evaluation", 0.25, _chat(other, 100, 400)),
        Kind("portal", "globex-portal", 0.15, _chat("gpt-4o", 20, 200, customers=("globex", "initech"))),
        Kind("blocked customer", "assistant-app", 0.02, _chat(model, 8, 20, customers=("umbrella",))),
        Kind("abort", SHOWN_KEY, 0.06, _chat(model, 100, 200), aborts=True),
        Kind("wrong key", "nobody", 0.02, _chat(model, 8, 20)),
        Kind("blocked key", "old-portal", 0.02, _chat(model, 8, 20)),
        Kind("unknown model", MEMBERS_KEY, 0.02, _chat("qwen-4", 8, 20)),
        Kind("busy server", "assistant-app", 0.05, _chat(other, 20, 40, lines=["x-simulate: status=503"])),
        Kind("engine error", "search-answers", 0.02, _chat(other, 20, 40, lines=["x-simulate: error-event"])),
        Kind("broken stream", "search-answers", 0.02, _chat(other, 20, 40, lines=["x-simulate: close-mid-body"])),
        Kind("slow", "search-answers", 0.03, _chat(other, 20, 40, lines=["x-simulate: slow-head=4"])),
    ]


@contextmanager
def background_load(
    found: Sequence[Kind], target_of: Callable[[str], Target], seconds: float, scale: float
) -> Iterator[Outcome]:
    """Send requests in a thread until the block ends, at most `LONGEST_SHOOTING` longer than these seconds."""
    outcome, over = Outcome(), threading.Event()

    async def send() -> None:
        load = asyncio.ensure_future(apply_kinds(found, target_of, seconds + LONGEST_SHOOTING, outcome, scale=scale))
        while not over.is_set() and not load.done():
            await asyncio.sleep(0.2)
        load.cancel()

    thread = threading.Thread(target=asyncio.run, args=(send(),), daemon=True)
    thread.start()
    try:
        yield outcome
    finally:
        over.set()
        thread.join()
