"""Which server a model goes to."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.settings import ModelEntry, PriceList, Server, Timeouts
from twisted_vllm.errors import ModelNotFound
from twisted_vllm.upstreams.router import Destination, Router


def _server(name: str) -> Server:
    return Server(name, name, 8000, False, b"", name.encode(), None, Timeouts())


A, B, C, DEFAULT = (_server(name) for name in ("a", "b", "c", "default"))


def test_a_model_goes_to_its_server_under_the_servers_name() -> None:
    entry = ModelEntry("chat", "qwen2.5", A)
    assert Router([entry], None).route("chat") == Destination(A, "qwen2.5", entry)


def test_a_model_of_the_same_name_on_both_sides_needs_no_renaming() -> None:
    entry = ModelEntry("qwen", "qwen", A)
    assert Router([entry], None).route("qwen") == Destination(A, None, entry)


def test_entries_of_one_name_take_turns_smoothly_by_weight() -> None:
    entries = [ModelEntry("m", "m", A, 5), ModelEntry("m", "m", B, 1), ModelEntry("m", "m", C, 1)]
    router = Router(entries, None)
    # the sequence that nginx documents for the weights 5, 1, 1
    assert "".join(router.route("m").server.name for _ in range(14)) == "aabacaa" * 2


def test_models_take_turns_apart_from_each_other() -> None:
    entries = [ModelEntry(name, name, server) for name in ("m", "n") for server in (A, B)]
    router = Router(entries, None)
    picks = [router.route(name).server.name for name in ("m", "n", "m", "n")]
    assert picks == ["a", "a", "b", "b"]


def test_each_entry_keeps_its_own_upstream_name() -> None:
    one, two = ModelEntry("m", "one", A), ModelEntry("m", "two", B)
    router = Router([one, two], None)
    assert {router.route("m") for _ in range(2)} == {Destination(A, "one", one), Destination(B, "two", two)}


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_one_round_gives_every_entry_exactly_its_weight(weights: list[int]) -> None:
    entries = [ModelEntry("m", str(index), A, weight) for index, weight in enumerate(weights)]
    router = Router(entries, None)
    picks = Counter(router.route("m").upstream_model for _ in range(sum(weights)))
    assert picks == {str(index): weight for index, weight in enumerate(weights)}


def test_an_unknown_model_goes_to_the_default_server_as_it_is() -> None:
    assert Router([ModelEntry("m", "x", A)], DEFAULT).route("other") == Destination(DEFAULT, None)


def test_an_unknown_model_without_a_default_server_is_not_found_and_the_answer_says_where_to_look() -> None:
    with pytest.raises(ModelNotFound) as caught:
        Router([ModelEntry("secret-model", "x", A)], None).route("other")
    assert "'other'" in caught.value.message
    assert "GET /vllm/v1/models" in caught.value.message
    assert "secret-model" not in caught.value.message


def test_a_long_model_name_is_clipped_in_the_answer() -> None:
    with pytest.raises(ModelNotFound) as caught:
        Router([], None).route("x" * 100_000)
    assert len(caught.value.message) < 250


def test_a_request_without_a_model_goes_to_the_default_server_else_to_the_first() -> None:
    entries = [ModelEntry("m", "x", A), ModelEntry("n", "y", B)]
    for router, expected in (
        (Router(entries, DEFAULT), Destination(DEFAULT, None)),
        (Router(entries, None), Destination(A, "x", entries[0])),
    ):
        assert router.route(None) == router.destination_for_undetermined() == expected


def _priced(name: str, upstream: str, server: Server, price: str | None) -> ModelEntry:
    return ModelEntry(
        name, upstream, server, 1, PriceList(output_cost_per_token=None if price is None else Decimal(price))
    )


def test_the_default_server_s_own_name_of_a_model_means_its_entry() -> None:
    entry = _priced("good", "qwen", DEFAULT, "1")
    router = Router([entry, _priced("else", "llama", A, "1")], DEFAULT)
    assert router.route("qwen") == Destination(DEFAULT, None, entry)
    assert router.route("llama") == Destination(DEFAULT, None)
    assert router.serving(DEFAULT, "qwen") is entry
    assert router.serving(A, "qwen") is None


def test_of_several_entries_of_one_model_the_dearest_is_meant() -> None:
    prices = [None, "1", "3", "2", "0"]
    entries = [_priced(f"m{index}", "qwen", DEFAULT, price) for index, price in enumerate(prices)]
    assert Router(entries, DEFAULT).route("qwen").entry is entries[2]


def test_the_price_of_an_unnamed_model_is_known_if_no_entry_of_the_server_has_one() -> None:
    router = Router([_priced("m", "x", A, "1"), _priced("n", "y", B, None), _priced("o", "z", C, "0")], DEFAULT)
    assert [router.prices_differ(server) for server in (A, B, C, DEFAULT)] == [True, False, False, False]


def test_without_any_server_the_operator_is_told_what_to_set() -> None:
    with pytest.raises(ModelNotFound, match="HOSTED_VLLM_API_BASE"):
        Router([], None).route(None)


def test_names_are_listed_once_and_in_order() -> None:
    assert Router([ModelEntry(name, "x", A) for name in ("b", "a", "b")], None).names == ("b", "a")


def test_a_request_goes_to_the_server_that_has_what_it_continues() -> None:
    router = Router([ModelEntry("m", "one", A), ModelEntry("m", "two", B)], DEFAULT)
    assert [router.route("m", server).server for server in (A, A, B, B)] == [A, A, B, B]
    # a server without the model gets none of its requests
    assert {router.route("m", DEFAULT).server for _ in range(2)} == {A, B}
