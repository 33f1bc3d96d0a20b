"""What is known of a server's prefix cache by its KV events."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.upstreams.kv_publishing import CLEARED, batch, removed, stored
from twisted_vllm.upstreams.kv_index import CacheIndex, chain
from twisted_vllm.upstreams.kv_messages import UnreadableEvents, read_batch

PROMPT = list(range(100, 112))
OTHER = [*range(100, 104), *range(204, 212)]


def index_after(*events: dict[str, Any], max_blocks: int = 1_000) -> CacheIndex:
    index = CacheIndex(max_blocks)
    for event in read_batch(batch(*events)):
        index.apply(event)
    return index


def test_the_leading_blocks_of_a_prompt_are_counted() -> None:
    index = index_after(stored([1, 2, 3], PROMPT))
    assert index.leading(chain(PROMPT, 4)) == 3
    assert index.leading(chain(OTHER, 4)) == 1
    assert index.leading(chain(PROMPT[1:], 4)) == 0
    assert index.block_size == 4


def test_tokens_after_the_last_whole_block_do_not_count() -> None:
    index = index_after(stored([1, 2, 3], PROMPT))
    assert index.leading(chain([*PROMPT, 1, 2], 4)) == 3
    assert chain(PROMPT[:3], 4) == []


def test_blocks_continue_their_parent() -> None:
    index = index_after(stored([1], PROMPT[:4]), stored([2, 3], PROMPT[4:], parent_block_hash=1))
    assert index.leading(chain(PROMPT, 4)) == 3


def test_blocks_after_an_unknown_one_are_passed_over() -> None:
    index = index_after(stored([2, 3], PROMPT[4:], parent_block_hash=1))
    assert index.leading(chain(PROMPT, 4)) == 0
    assert (len(index), index.orphans) == (0, 2)


def test_removed_blocks_end_the_prefix() -> None:
    index = index_after(stored([1, 2, 3], PROMPT), removed([2]))
    assert index.leading(chain(PROMPT, 4)) == 1
    assert len(index) == 2


def test_a_cleared_cache_has_nothing() -> None:
    index = index_after(stored([1, 2, 3], PROMPT), CLEARED)
    assert index.leading(chain(PROMPT, 4)) == 0
    assert len(index) == 0


def test_a_block_in_two_places_stays_until_it_left_both() -> None:
    events = [stored([1], PROMPT[:4]), stored([1], PROMPT[:4], medium="CPU"), removed([1])]
    assert index_after(*events).leading(chain(PROMPT, 4)) == 1
    assert index_after(*events, removed([1], medium="CPU")).leading(chain(PROMPT, 4)) == 0


def test_salts_and_adapters_have_caches_of_their_own() -> None:
    salted = index_after(stored([1, 2, 3], PROMPT, extra_keys=[["salt"], None, None]))
    assert salted.leading(chain(PROMPT, 4, ("salt",))) == 3
    assert salted.leading(chain(PROMPT, 4)) == 0
    adapted = index_after(stored([1, 2, 3], PROMPT, lora_name="sql", extra_keys=[["sql", "salt"], ["sql"], ["sql"]]))
    assert adapted.leading(chain(PROMPT, 4, ("sql", "salt"), ("sql",))) == 3
    assert adapted.leading(chain(PROMPT, 4, ("sql",), ("sql",))) == 0
    assert adapted.adapters == {"sql"}


def test_layers_that_keep_only_the_end_of_a_prompt_do_not_count() -> None:
    index = index_after(stored([1, 2, 3], PROMPT, group_idx=1, kv_cache_spec_kind="sliding_window"))
    assert index.leading(chain(PROMPT, 4)) == 0
    assert index_after(stored([1], PROMPT[:4], kv_cache_spec_kind="full_attention")).leading(chain(PROMPT, 4)) == 1


def test_the_block_that_was_longest_not_reported_gives_way() -> None:
    index = index_after(
        stored([1], PROMPT[:4]),
        stored([2], PROMPT[4:8]),
        stored([1], PROMPT[:4]),
        stored([3], PROMPT[8:]),
        max_blocks=2,
    )
    assert index.leading(chain(PROMPT[:4], 4)) == 1
    assert index.leading(chain(PROMPT[4:8], 4)) == 0
    assert len(index) == 2


def test_what_was_sent_is_expected_for_a_while() -> None:
    index = index_after(stored([1], PROMPT[:4]))
    keys = chain(PROMPT, 4)
    index.expect(keys)
    assert index.leading(keys) == 3
    index.age()
    assert index.leading(keys) == 3
    index.age()
    assert index.leading(keys) == 1
    # the server tells of it late
    index.expect(keys)
    index.clear()
    assert index.leading(keys) == 3
    index.age()
    index.age()
    assert index.leading(keys) == 0


def test_an_index_is_trusted_while_most_of_what_is_expected_comes() -> None:
    index = index_after(stored([1], PROMPT[:4]))
    index.expect(chain(OTHER, 4))
    index.age()
    assert index.trusted
    index.age()
    assert not index.trusted
    for event in read_batch(batch(stored([4, 5, 6], OTHER))):
        index.apply(event)
    index.expect(chain(OTHER, 4))
    index.age()
    index.age()
    assert index.trusted
    index.age()
    assert index.trusted


@pytest.mark.parametrize(
    "event",
    [
        stored([1, 2], PROMPT[:4], block_size=4),
        stored([1], PROMPT[:4], extra_keys=[None, None]),
        stored([b"x" * 65], PROMPT[:4]),
    ],
)
def test_events_that_contradict_themselves_are_told(event: dict[str, Any]) -> None:
    with pytest.raises(UnreadableEvents):
        index_after(event)


def test_events_of_kinds_that_are_not_known_are_passed_over() -> None:
    index = index_after({"type": "BlockMoved", "to": "moon"}, stored([1], PROMPT[:4], new_member=[1, {"a": None}]))
    assert index.leading(chain(PROMPT, 4)) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([1.0]),
        msgspec.msgpack.encode([1.0, "no list"]),
        batch({"type": "BlockStored"}),
        batch(stored([1], [-1, 2, 3, 4])),
        batch(stored([1], [1 << 32, 2, 3, 4])),
        batch(stored([1], PROMPT[:4], block_size=0)),
        batch({"type": 7}),
    ],
)
def test_batches_that_vllm_does_not_send_are_told(payload: bytes) -> None:
    with pytest.raises(UnreadableEvents):
        read_batch(payload)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_batch_or_are_told(payload: bytes) -> None:
    with suppress(UnreadableEvents):
        read_batch(payload)


prompts = st.lists(st.integers(0, 3), max_size=20)


@given(st.lists(st.tuples(prompts, st.booleans()), max_size=12), prompts)
def test_what_is_counted_is_what_a_cache_of_blocks_has(steps: list[tuple[list[int], bool]], asked: list[int]) -> None:
    """The index agrees with a set of whole prefixes, whatever is stored and removed."""
    index, cached = CacheIndex(), set[tuple[int, ...]]()
    for prompt, stays in steps:
        whole = [tuple(prompt[:end]) for end in range(2, len(prompt) + 1, 2)]
        if stays and whole:
            # vLLM's name of a block depends on all before it
            event = stored([hash(each) for each in whole], whole[-1])
            cached |= set(whole)
        elif whole:
            event = removed([hash(whole[-1])])
            cached.discard(whole[-1])
        else:
            event = CLEARED
            cached.clear()
        for each in read_batch(batch(event)):
            index.apply(each)
    count = 0
    while 2 * count + 2 <= len(asked) and tuple(asked[: 2 * count + 2]) in cached:
        count += 1
    assert index.leading(chain(asked, 2)) == count
