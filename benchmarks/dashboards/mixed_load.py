"""A mixed load: chats, embeddings, aborts, refusals, failing servers, in the shape of a day at work."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

import attrs
import msgspec

from benchmarks.answers import BadAnswer
from benchmarks.client import Target, connected
from benchmarks.dashboards.world import CHAT, EMBEDDING, World

_TOPICS = ("the tides", "a night train", "bread", "old maps", "a quiet harbour", "bees", "the first snow", "violins")
_PATIENCE = 60.0


@attrs.frozen
class Kind:
    """One kind of client.

    Attributes:
        name: what it is called in the report.
        key: the alias of its key.
        rate: requests in a second, on the average.
        make: returns the path, the body and more lines of the head of a request.
        aborts: whether it goes away after the first event.
        swells: whether its rate follows the time of day, or stays the same.
    """

    name: str
    key: str
    rate: float
    make: Callable[[random.Random], tuple[str, dict[str, object], Sequence[str]]]
    aborts: bool = False
    swells: bool = True


@attrs.define
class Outcome:
    """What the clients saw.

    Attributes:
        statuses: how many answers of each status each kind of client got; 0 for one that did not come whole.
    """

    statuses: Counter[tuple[str, int]] = attrs.Factory(Counter)

    def of(self, name: str) -> Counter[int]:
        """The statuses of one kind."""
        return Counter({status: count for (kind, status), count in self.statuses.items() if kind == name})


async def apply_mixed_load(world: World, seconds: float, *, scale: float = 1.0, seed: int = 0) -> Outcome:
    """Send requests of all kinds for so many seconds, and let a server die and come back.

    Args:
        world: what runs.
        seconds: how long requests are sent; those on their way are waited for.
        scale: by how much all rates are multiplied.
        seed: of the random numbers.
    """
    outcome = Outcome()

    async def break_a_server() -> None:
        server = world.servers[1]
        await asyncio.sleep(seconds * 0.52)
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(seconds * 0.2)
        await asyncio.to_thread(server.start)

    load = apply_kinds(_kinds(world), world.target, seconds, outcome, scale=scale, seed=seed)
    await asyncio.gather(break_a_server(), load)
    return outcome


async def apply_kinds(
    kinds: Sequence[Kind],
    target_of: Callable[[str], Target],
    seconds: float,
    outcome: Outcome,
    *,
    scale: float = 1.0,
    seed: int = 0,
) -> None:
    """Send requests of these kinds for so many seconds.

    Args:
        kinds: the kinds; those without a rate are left out.
        target_of: returns where the owner of a key sends requests, by the key's alias.
        seconds: how long requests are sent; those on their way are waited for.
        outcome: where it is counted what came of them.
        scale: by how much all rates are multiplied.
        seed: of the random numbers.
    """
    chance = random.Random(seed)
    began = time.monotonic()
    tasks: set[asyncio.Task[None]] = set()

    async def ask(kind: Kind) -> None:
        path, body, lines = kind.make(chance)
        sent = msgspec.json.encode(body)
        target = target_of(kind.key)
        status = 0
        try:
            async with asyncio.timeout(_PATIENCE), connected(target) as connection:
                request = target.head(len(sent), path, lines) + sent
                if kind.aborts:
                    await connection.open_stream(request)
                    await asyncio.sleep(chance.random())
                    status = connection.answer.status or 0
                else:
                    answer = await connection.ask(request)
                    status = answer.status or 0
        except (BadAnswer, TimeoutError):
            status = 0
        outcome.statuses[kind.name, status] += 1

    async def arrive(kind: Kind) -> None:
        """Begin requests at random moments, whether those before have ended or not; at least one."""
        pause = chance.random() * min(1 / (kind.rate * scale), seconds / 2)
        while (passed := time.monotonic() - began + pause) < seconds:
            await asyncio.sleep(pause)
            task = asyncio.create_task(ask(kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            pause = chance.expovariate(kind.rate * scale * (_swell(passed / seconds) if kind.swells else 1.0))

    await asyncio.gather(*(arrive(kind) for kind in kinds if kind.rate))
    await asyncio.gather(*tasks)


def _swell(passed: float) -> float:
    """How much of the load there is after this share of the time: it grows, with one rush in the first half."""
    rush = 1.2 * math.exp(-(((passed - 0.36) / 0.05) ** 2))
    return 0.65 + 0.35 * math.sin(math.tau * (passed * 1.6 - 0.2)) + 0.3 * passed + rush


def _kinds(world: World) -> list[Kind]:
    live = world.models - {CHAT, EMBEDDING}
    return [
        Kind("chat", "assistant-web", 2.6, _chat),
        Kind("chat app", "assistant-app", 1.1, _chat),
        Kind("answers", "search-answers", 0.9, _long_chat),
        Kind("tools", "assistant-app", 0.4, _tools),
        Kind("embeddings", "search-index", 3.0, _embeddings),
        Kind("notebook", "notebook-ada", 0.5, _chat),
        Kind("small budget", "notebook-bob", 0.4, _chat),
        Kind("job", "nightly-job", 0.7, _chat, swells=False),
        Kind("abort", "assistant-web", 0.3, _chat, aborts=True),
        Kind("wrong key", "nobody", 0.12, _chat),
        Kind("unknown model", "notebook-ada", 0.06, _unknown_model),
        Kind("busy server", "assistant-web", 0.15, _failing("status=503")),
        Kind("engine error", "assistant-app", 0.05, _failing("error-event")),
        Kind("broken stream", "assistant-app", 0.04, _failing("close-mid-body")),
        *(Kind("live", "notebook-eve", 0.25, _live(name), swells=False) for name in sorted(live)),
    ]


def _body(chance: random.Random, model: str, most: int) -> dict[str, object]:
    topic = chance.choice(_TOPICS)
    messages = [
        {"role": "system", "content": f"You write short letters about {topic}. " * 8},
        {"role": "user", "content": f"Write letter {chance.randrange(1000)} about {topic}."},
    ]
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, "messages": messages, "max_tokens": chance.randint(most // 4, most)} | stream


def _natural(chance: random.Random) -> list[str]:
    """The simulator begins at once; prompts of many lengths do not."""
    return [f"x-simulate: slow-head={chance.lognormvariate(-2.2, 0.9):.3f}"]


def _chat(chance: random.Random) -> tuple[str, dict[str, object], Sequence[str]]:
    return "/v1/chat/completions", _body(chance, CHAT, 120), _natural(chance)


def _long_chat(chance: random.Random) -> tuple[str, dict[str, object], Sequence[str]]:
    return "/v1/chat/completions", _body(chance, CHAT, 260), _natural(chance)


def _tools(chance: random.Random) -> tuple[str, dict[str, object], Sequence[str]]:
    function = {"name": "tide", "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}}}
    body = _body(chance, CHAT, 60) | {"tools": [{"type": "function", "function": function}]}
    return "/v1/chat/completions", body, _natural(chance)


def _embeddings(chance: random.Random) -> tuple[str, dict[str, object], Sequence[str]]:
    texts = [f"{chance.choice(_TOPICS)} {number}" * 12 for number in range(chance.randint(1, 8))]
    return "/v1/embeddings", {"model": EMBEDDING, "input": texts}, ()


def _unknown_model(chance: random.Random) -> tuple[str, dict[str, object], Sequence[str]]:
    return "/v1/chat/completions", _body(chance, "qwen-4", 20), ()


def _failing(fault: str) -> Callable[[random.Random], tuple[str, dict[str, object], Sequence[str]]]:
    def make(chance: random.Random) -> tuple[str, dict[str, object], Sequence[str]]:
        return "/v1/chat/completions", _body(chance, CHAT, 60), [f"x-simulate: {fault}"]

    return make


def _live(model: str) -> Callable[[random.Random], tuple[str, dict[str, object], Sequence[str]]]:
    def make(chance: random.Random) -> tuple[str, dict[str, object], Sequence[str]]:
        return "/v1/chat/completions", _body(chance, model, 24), ()

    return make
