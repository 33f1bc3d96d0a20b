"""The table of prefixes: what servers have, in bounded memory."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.upstreams.prefix_table import ENTRY_SIZE, MAX_BLOCKS, MAX_GONE, PrefixTable

SERVERS = ("a", "b", "c")


def chained(text: str) -> tuple[int, ...]:
    """One block for each character."""
    return tuple(hash(text[:end]) for end in range(1, len(text) + 1))


texts = st.text("xyz", max_size=6)
acts = st.lists(st.one_of(st.tuples(st.sampled_from(SERVERS), texts), st.sampled_from(SERVERS)), max_size=60)


@given(acts, texts)
def test_it_knows_the_longest_beginning_that_each_server_was_sent(
    happened: list[tuple[str, str] | str], text: str
) -> None:
    table = PrefixTable()
    sent: dict[str, set[str]] = {name: set() for name in SERVERS}
    ends: set[str] = set()
    for act in happened:
        if isinstance(act, str):
            table.forget(act)
            sent[act].clear()
        else:
            table.learn(chained(act[1]), act[0])
            sent[act[0]].update(act[1][:end] for end in range(1, len(act[1]) + 1))
            ends.add(act[1])
    expected = [
        max((end for end in range(1, len(text) + 1) if text[:end] in sent[name]), default=0) for name in SERVERS
    ]
    found, continues = table.matched(chained(text), SERVERS)
    assert found == expected
    if max(expected) and not any(isinstance(act, str) for act in happened):
        assert continues == (text[: max(expected)] in ends)
    for end, block in enumerate(chained(text), 1):
        assert table.knows(block) == any(text[:end] in known for known in sent.values())


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    table = PrefixTable(1_000)
    used, unused = chained("used"), chained("forgotten")
    table.learn(unused, "a")
    for number in range(2_000):
        table.learn((number, -number - 2), "b")
        if number % 100 == 0:
            table.learn(used, "a")
    assert table.matched(used, ["a"]) == ([4], True)
    assert table.matched(unused, ["a"]) == ([0], False)


def test_a_million_prompts_fill_it_to_its_bound_only() -> None:
    table, source = PrefixTable(), random.Random(1)
    bits = source.getrandbits
    most = 0
    for number in range(1_000_000):
        table.learn((bits(61), bits(61)), SERVERS[number % 3])
        if number % 1_000 == 0:
            most = max(most, len(table))
    assert MAX_BLOCKS // 2 < most <= MAX_BLOCKS
    assert len(table) <= MAX_BLOCKS


def test_a_full_table_takes_the_bytes_that_are_documented() -> None:
    source = random.Random(2)
    names = [f"server-{number}" for number in range(20)]
    tracemalloc.start()
    try:
        table = PrefixTable()
        for number in range(3 * MAX_BLOCKS // 4):
            table.learn((source.getrandbits(62), source.getrandbits(62)), names[number % 20])
        assert tracemalloc.get_traced_memory()[0] <= MAX_BLOCKS * ENTRY_SIZE
    finally:
        tracemalloc.stop()


def test_one_prompt_cannot_fill_more_than_half_of_it() -> None:
    table = PrefixTable(100)
    table.learn(tuple(range(1, 1_000)), "a")
    assert len(table) <= 100
    assert table.matched(tuple(range(1, 1_000)), ["a"])[0][0] == 50


def test_a_server_that_restarts_again_and_again_leaves_nothing_behind() -> None:
    table = PrefixTable()
    table.learn((7, 8), "stays")
    for number in range(20 * MAX_GONE):
        table.learn((number + 100,), "restarts")
        table.forget("restarts")
    assert len(table) <= MAX_GONE + 3
    assert table.matched((7, 8), ["stays", "restarts"]) == ([2, 0], True)
    table.learn((7,), "restarts")
    assert table.matched((7, 8), ["stays", "restarts"])[0] == [2, 1]
