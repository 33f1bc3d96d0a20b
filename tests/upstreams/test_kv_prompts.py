"""What was sent where is corrected by what is in the caches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.upstreams.kv_publishing import batch, removed, stored
from twisted_vllm.upstreams.kv_index import CacheIndex
from twisted_vllm.upstreams.kv_messages import read_batch
from twisted_vllm.upstreams.kv_prompts import MAX_PROMPTS, ExactPrefixTable, KnownPrompts
from twisted_vllm.upstreams.prefix_table import PrefixTable

#: a text of six blocks, of which four tokens each make a block of the cache
TEXT = (11, 12, 13, 14, 15, 16)
TOKENS = list(range(100, 112))
SERVERS = ("one", "two")


class Fleet:
    """Two servers with a table; `indices` are those that are current."""

    def __init__(self) -> None:
        self.prompts = KnownPrompts()
        self.indices = {"one": CacheIndex(), "two": CacheIndex()}
        self.table = ExactPrefixTable(PrefixTable(), self.prompts, lambda name: self.indices.get(name), self.indices)

    def tell(self, server: str, *events: object) -> None:
        for event in read_batch(batch(*events)):  # type: ignore[arg-type]  # made by kv_publishing
            self.indices[server].apply(event)

    def matched(self, text: tuple[int, ...] = TEXT) -> list[int]:
        return self.table.matched(text, SERVERS)[0]


def test_without_events_what_was_sent_counts() -> None:
    fleet = Fleet()
    fleet.table.learn(TEXT[:4], "one")
    assert fleet.matched() == [4, 0]
    fleet.table.forget("one")
    assert fleet.matched() == [0, 0]


def test_what_a_server_dropped_does_not_count() -> None:
    fleet = Fleet()
    fleet.prompts.learn(TEXT, TOKENS, 4)
    fleet.table.learn(TEXT, "one")
    fleet.tell("one", stored([1, 2, 3], TOKENS))
    assert fleet.matched() == [6, 0]
    fleet.tell("one", removed([3]))
    assert fleet.matched() == [4, 0]
    fleet.tell("one", removed([1, 2]))
    assert fleet.matched() == [0, 0]


def test_what_others_sent_counts() -> None:
    fleet = Fleet()
    fleet.prompts.learn(TEXT, TOKENS, 4)
    fleet.tell("two", stored([1, 2], TOKENS[:8]))
    assert fleet.matched() == [0, 4]


def test_a_longer_prompt_is_judged_by_its_known_part_and_by_what_was_sent() -> None:
    fleet = Fleet()
    longer = (*TEXT, 17, 18)
    fleet.prompts.learn(TEXT, TOKENS, 4)
    fleet.tell("one", stored([1, 2, 3], TOKENS))
    fleet.tell("two", stored([1, 2, 3], TOKENS))
    fleet.table.learn(longer, "two")
    assert fleet.matched(longer) == [6, 8]


def test_what_was_just_sent_counts_before_the_server_reports_it() -> None:
    fleet = Fleet()
    fleet.tell("one", stored([9], [1, 2, 3, 4]))
    fleet.prompts.learn(TEXT, TOKENS, 4)
    fleet.table.learn(TEXT, "one")
    assert fleet.matched() == [6, 0]
    fleet.tell("one", stored([1, 2], TOKENS[:8]))
    fleet.indices["one"].age()
    fleet.indices["one"].age()
    assert fleet.matched() == [4, 0]


def test_tokens_that_a_server_never_reports_do_not_decide() -> None:
    fleet = Fleet()
    fleet.tell("one", stored([9], [1, 2, 3, 4]))
    fleet.prompts.learn(TEXT, TOKENS, 4)
    fleet.table.learn(TEXT, "one")
    for _ in range(2):
        fleet.indices["one"].age()
    assert fleet.matched() == [6, 0]


def test_a_server_that_is_not_followed_is_judged_by_what_was_sent() -> None:
    fleet = Fleet()
    fleet.prompts.learn(TEXT, TOKENS, 4)
    fleet.table.learn(TEXT, "two")
    fleet.tell("one", stored([1], TOKENS[:4]))
    del fleet.indices["two"]
    assert fleet.matched() == [2, 6]


def test_a_salt_is_another_prompt() -> None:
    fleet = Fleet()
    fleet.prompts.learn(TEXT, TOKENS, 4, salt="a")
    fleet.tell("one", stored([1, 2, 3], TOKENS))
    fleet.tell("two", stored([4, 5, 6], TOKENS, extra_keys=[["a"], None, None]))
    assert fleet.matched() == [0, 6]


def test_a_prompt_is_known_enough_if_half_of_its_text_is() -> None:
    prompts = KnownPrompts()
    prompts.learn(TEXT, TOKENS, 4)
    longer = (*TEXT, *range(20, 26))
    assert prompts.knows_enough(longer, 4)
    assert not prompts.knows_enough((*longer, 26), 4)
    assert not prompts.knows_enough(TEXT, 16)
    assert not prompts.knows_enough((21, 22, 23), 4)


def test_prompts_that_were_learned_long_ago_are_forgotten() -> None:
    prompts = KnownPrompts()
    for number in range(MAX_PROMPTS + 1):
        prompts.learn((number,), TOKENS, 4)
    assert prompts.find((0,), 4)[0] == 0
    assert prompts.find((MAX_PROMPTS,), 4)[0] == 1


@given(st.lists(st.tuples(st.sampled_from(SERVERS), st.integers(1, 6), st.integers(0, 3)), max_size=10))
def test_no_server_has_more_than_was_sent_or_reported(steps: list[tuple[str, int, int]]) -> None:
    fleet = Fleet()
    fleet.prompts.learn(TEXT, TOKENS, 4)
    most = dict.fromkeys(SERVERS, 0)
    for server, text, blocks in steps:
        fleet.table.learn(TEXT[:text], server)
        if blocks:
            fleet.tell(server, stored(list(range(blocks)), TOKENS[: 4 * blocks]))
        most[server] = max(most[server], text, 2 * blocks)
    for server, count in zip(SERVERS, fleet.matched(), strict=True):
        assert 0 <= count <= max(most[server], 0)
