"""Batches of KV events are applied once, in order, and none is missed unnoticed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.upstreams.kv_messages import BlockRemoved, KvEvent
from twisted_vllm.upstreams.kv_sequence import MAX_HELD, BatchSequence


def events(number: int) -> list[KvEvent]:
    """The events of a batch, which tell its number."""
    return [BlockRemoved([number])]


class Follower:
    """A sequence, and what was applied since it was last cleared."""

    def __init__(self, replays: bool = True) -> None:
        self.applied: list[int] = []
        self.asked: list[int] = []
        self.sequence = BatchSequence(self._apply, self.applied.clear, self.asked.append if replays else None)

    def _apply(self, batch: Sequence[KvEvent]) -> None:
        for event in batch:
            assert isinstance(event, BlockRemoved)
            (number,) = event.block_hashes
            assert isinstance(number, int)
            self.applied.append(number)

    def published(self, *numbers: int) -> None:
        for number in numbers:
            self.sequence.published(number, events(number))

    def replayed(self, *numbers: int) -> None:
        for number in numbers:
            self.sequence.replayed(number, events(number))
        self.sequence.replay_ended()


def test_a_new_connection_asks_for_all_there_was() -> None:
    follower = Follower()
    follower.sequence.connected()
    assert (follower.asked, follower.sequence.current) == ([0], False)
    follower.published(3)
    follower.replayed(0, 1, 2, 3)
    assert follower.applied == [0, 1, 2, 3]
    assert follower.sequence.current
    follower.published(4)
    assert follower.applied == [0, 1, 2, 3, 4]


def test_a_server_that_kept_only_its_last_batches_is_known_from_there() -> None:
    follower = Follower()
    follower.sequence.connected()
    follower.replayed(7, 8)
    assert follower.applied == [7, 8]
    assert follower.sequence.current


def test_a_gap_is_asked_for() -> None:
    follower = Follower()
    follower.sequence.connected()
    follower.replayed(0)
    follower.published(3, 4)
    assert (follower.asked, follower.applied, follower.sequence.current) == ([0, 1], [0], False)
    follower.replayed(1, 2, 3)
    assert (follower.applied, follower.sequence.current) == ([0, 1, 2, 3, 4], True)


def test_what_the_replay_had_already_is_not_applied_again() -> None:
    follower = Follower()
    follower.sequence.connected()
    follower.replayed(0, 1, 2)
    follower.published(1, 2, 3)
    assert follower.applied == [0, 1, 2, 3]


def test_without_a_replay_a_gap_clears_what_was_known() -> None:
    follower = Follower(replays=False)
    follower.sequence.connected()
    assert not follower.sequence.current
    follower.published(5, 6)
    assert (follower.applied, follower.sequence.current) == ([5, 6], True)
    follower.published(8)
    assert follower.applied == [8]


def test_a_broken_connection_clears_what_was_known() -> None:
    follower = Follower()
    follower.sequence.connected()
    follower.replayed(0, 1)
    follower.sequence.disconnected()
    assert (follower.applied, follower.sequence.current) == ([], False)
    follower.sequence.connected()
    # a new process begins with 0 again
    follower.replayed(0)
    assert (follower.asked, follower.applied) == ([0, 0], [0])


def test_a_replay_that_does_not_come_is_done_without() -> None:
    follower = Follower()
    follower.sequence.connected()
    follower.published(4, 5)
    follower.sequence.replay_failed()
    assert (follower.applied, follower.sequence.current) == ([4, 5], True)


def test_an_unreadable_batch_clears_what_was_known() -> None:
    follower = Follower()
    follower.sequence.connected()
    follower.replayed(0)
    follower.sequence.unreadable()
    assert (follower.applied, follower.sequence.current) == ([], False)
    follower.published(2)
    assert follower.applied == [2]


def test_what_is_held_during_a_replay_is_bounded() -> None:
    follower = Follower()
    follower.sequence.connected()
    follower.published(*range(10, 10 + 2 * MAX_HELD))
    follower.replayed(*range(10))
    assert follower.applied == list(range(10 + MAX_HELD))
    # the rest shows as a gap with the next batch
    follower.published(10 + 2 * MAX_HELD)
    assert follower.asked[-1] == 10 + MAX_HELD
    assert not follower.sequence.current


@given(st.lists(st.sampled_from(["publish", "lose", "deliver", "replay", "kill"]), max_size=40), st.integers(1, 5))
def test_whatever_is_lost_what_is_applied_has_no_gap(steps: list[str], kept: int) -> None:
    """After the last batch was delivered, all of the server's process are applied, or all since a clear."""
    follower = Follower()
    follower.sequence.connected()
    batches: list[int] = []
    wire: list[int] = []
    answered = 0

    def replay() -> None:
        nonlocal answered
        if len(follower.asked) > answered:
            answered = len(follower.asked)
            follower.replayed(*(each for each in batches[-kept:] if each >= follower.asked[-1]))

    for step in [*steps, "publish", "deliver", "replay", "replay", "replay"]:
        if step == "publish":
            batches.append(len(batches))
            wire.append(batches[-1])
        elif step == "lose":
            wire.clear()
        elif step == "deliver":
            follower.published(*wire)
            wire.clear()
        elif step == "replay":
            replay()
        else:
            batches.clear()
            wire.clear()
            follower.sequence.disconnected()
            follower.sequence.connected()
        first = follower.applied[0] if follower.applied else 0
        assert follower.applied == list(range(first, first + len(follower.applied)))
    assert follower.sequence.current
    assert follower.applied[-1] == batches[-1]
    assert len(follower.applied) >= min(kept, len(batches))
