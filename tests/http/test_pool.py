"""Which idle connection is reused next, and which are closed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.http.client.pool import KEEP, Pool

#: seconds after which uvicorn, vLLM's server, closes an idle connection
UVICORN_KEEP_ALIVE = 5.0


def test_the_connection_used_last_is_taken_first() -> None:
    pool: Pool[str] = Pool()
    for now, name in enumerate(("first", "second", "third")):
        assert pool.put("server", name, now) == []
    assert [pool.take("server", 3.0) for _ in range(4)] == ["third", "second", "first", None]


def test_a_server_gets_none_of_another_servers_connections() -> None:
    pool: Pool[str] = Pool()
    pool.put("one", "connection", 0)
    assert pool.take("two", 0) is None
    assert pool.take("one", 0) == "connection"


def test_a_connection_that_was_idle_for_too_long_is_not_taken() -> None:
    pool: Pool[str] = Pool(keep=4.0)
    pool.put("server", "connection", 10.0)
    assert pool.take("server", 14.0) is None
    assert pool.take("server", 13.9) == "connection"


def test_a_connection_is_kept_for_less_than_vllm_keeps_it() -> None:
    assert KEEP < UVICORN_KEEP_ALIVE


def test_what_is_over_the_count_is_let_go_the_oldest_first() -> None:
    pool: Pool[str] = Pool(keep_count=2)
    pool.put("server", "first", 0)
    pool.put("server", "second", 1)
    assert pool.put("server", "third", 2) == ["first"]
    assert len(pool) == 2
    assert pool.take("server", 2) == "third"


def test_the_count_is_of_each_server() -> None:
    pool: Pool[str] = Pool(keep_count=1)
    assert pool.put("one", "a", 0) == []
    assert pool.put("two", "b", 0) == []
    assert len(pool) == 2


def test_a_pool_that_keeps_nothing_lets_go_at_once() -> None:
    pool: Pool[str] = Pool(keep_count=0)
    assert pool.put("server", "connection", 0) == ["connection"]
    assert len(pool) == 0


def test_a_discarded_connection_is_not_taken() -> None:
    pool: Pool[str] = Pool()
    pool.put("server", "gone", 0)
    pool.put("server", "there", 0)
    pool.discard("server", "gone")
    assert pool.take("server", 0) == "there"
    assert pool.take("server", 0) is None


def test_discarding_what_is_not_in_the_pool_does_nothing() -> None:
    pool: Pool[str] = Pool()
    pool.discard("server", "unknown")
    pool.put("server", "connection", 0)
    pool.discard("server", "unknown")
    assert len(pool) == 1


def test_clearing_gives_back_everything_of_one_server() -> None:
    pool: Pool[str] = Pool()
    pool.put("one", "a", 0)
    pool.put("two", "b", 0)
    pool.put("one", "c", 1)
    assert pool.clear("one") == ["a", "c"]
    assert pool.clear("one") == pool.clear("unknown") == []
    assert pool.take("one", 1) is None
    assert len(pool) == 1


def test_a_connection_is_not_taken_in_the_turn_in_which_it_became_idle() -> None:
    pool: Pool[str] = Pool()
    pool.put("server", "older", 0, turn=6)
    pool.put("server", "first", 0, turn=7)
    pool.put("server", "second", 0, turn=7)
    assert pool.take("server", 0, turn=7) == "older"
    assert pool.take("server", 0, turn=7) is None
    assert pool.take("server", 0, turn=8) == "second"
    assert pool.take("server", 0, turn=0) == "first"


def test_outside_a_turn_every_connection_may_be_taken() -> None:
    pool: Pool[str] = Pool()
    pool.put("server", "connection", 0)
    assert pool.take("server", 0) == "connection"


def test_its_repr_tells_how_many_are_idle() -> None:
    pool: Pool[str] = Pool()
    assert repr(pool) == "<Pool idle {}>"
    pool.put("vllm:8000", "secret-looking", 0)
    assert repr(pool) == "<Pool idle {vllm:8000: 1}>"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("put", "take", "discard")), st.sampled_from("ab"), st.floats(0, 3), st.sampled_from((0, 0, 1))
    )
)


@given(STEPS)
def test_no_connection_is_ever_given_out_twice_or_lost(steps: list[tuple[str, str, float, int]]) -> None:
    pool: Pool[int] = Pool(keep=4.0, keep_count=3)
    inside: dict[int, tuple[str, float, int]] = {}
    now, number, turn = 0.0, 0, 1
    for action, server, seconds, turns in steps:
        now += seconds
        turn += turns
        if action == "put":
            number += 1
            inside[number] = (server, now, turn)
            for surplus in pool.put(server, number, now, turn):
                del inside[surplus]
        elif action == "take":
            taken = pool.take(server, now, turn)
            fresh = [
                key
                for key, (where, since, in_turn) in inside.items()
                if where == server and since + 4.0 > now and in_turn != turn
            ]
            assert taken == (max(fresh) if fresh else None)
            inside.pop(taken or 0, None)
        else:
            mine = [key for key, (where, *_) in inside.items() if where == server]
            if mine:
                pool.discard(server, mine[0])
                del inside[mine[0]]
        assert len(pool) == len(inside)
    assert sorted(pool.clear("a") + pool.clear("b")) == sorted(inside)


def test_those_that_were_idle_for_longest_make_room_whatever_server_they_belong_to() -> None:
    pool: Pool[str] = Pool()
    for now, (server, name) in enumerate([("one", "a"), ("two", "b"), ("one", "c"), ("two", "d")]):
        pool.put(server, name, now)
    assert pool.oldest(3) == ["a", "b", "c"]
    assert len(pool) == 1
    assert pool.oldest(3) == ["d"]
    assert pool.oldest(3) == []
