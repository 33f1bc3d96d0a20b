"""Which servers may serve a model, and how they share its requests."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.upstreams.fleets import make_router
from twisted_vllm.config.settings import ModelEntry, PriceList, RoutingSettings, Server, Timeouts
from twisted_vllm.errors import ModelNotFound
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.upstreams.dispatcher import Ask, Dispatcher, Placement
from twisted_vllm.upstreams.router import Destination, Router


def _server(name: str) -> Server:
    return Server(name, name, 8000, False, b"", name.encode(), None, Timeouts())


A, B, C, DEFAULT = (_server(name) for name in ("a", "b", "c", "default"))


def only(router: Router, model: str | None) -> tuple[Server, str | None, ModelEntry | None]:
    """Return the one destination of a model."""
    [found] = (router.undetermined() if model is None else router.find(model)).destinations
    return found.server, found.upstream_model, found.entry


def place(router: Router, model: str, times: int, **ask: object) -> list[Destination]:
    """Return where so many requests go, each of which ends at once."""
    dispatcher = Dispatcher(DeadlineSweeper(Clock()))
    found = []
    for _ in range(times):
        placement = dispatcher.place(router.find(model), Ask(**ask))  # type: ignore[arg-type]
        assert isinstance(placement, Placement)
        found.append(placement.destination)
        placement.ended()
    return found


def test_a_model_goes_to_its_server_under_the_servers_name() -> None:
    entry = ModelEntry("chat", "qwen2.5", A)
    assert only(make_router([entry], None), "chat") == (A, "qwen2.5", entry)


def test_a_model_of_the_same_name_on_both_sides_needs_no_renaming() -> None:
    entry = ModelEntry("qwen", "qwen", A)
    assert only(make_router([entry], None), "qwen") == (A, None, entry)


def test_entries_of_one_name_take_turns_smoothly_by_weight() -> None:
    entries = [ModelEntry("m", "m", A, 5), ModelEntry("m", "m", B, 1), ModelEntry("m", "m", C, 1)]
    # the sequence that nginx documents for the weights 5, 1, 1
    assert "".join(each.server.name for each in place(make_router(entries, None), "m", 14)) == "aabacaa" * 2


def test_models_take_turns_apart_from_each_other() -> None:
    entries = [ModelEntry(name, name, server) for name in ("m", "n") for server in (A, B)]
    router = make_router(entries, None)
    picks = [place(router, name, 1)[0].server.name for name in ("m", "n", "m", "n")]
    assert picks == ["a", "a", "b", "b"]


def test_each_entry_keeps_its_own_upstream_name() -> None:
    one, two = ModelEntry("m", "one", A), ModelEntry("m", "two", B)
    found = place(make_router([one, two], None), "m", 2)
    assert {(each.server, each.upstream_model, each.entry) for each in found} == {(A, "one", one), (B, "two", two)}


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_one_round_gives_every_entry_exactly_its_weight(weights: list[int]) -> None:
    entries = [ModelEntry("m", str(index), A, weight) for index, weight in enumerate(weights)]
    picks = Counter(each.upstream_model for each in place(make_router(entries, None), "m", sum(weights)))
    assert picks == {str(index): weight for index, weight in enumerate(weights)}


def test_an_unknown_model_goes_to_the_default_server_as_it_is() -> None:
    assert only(make_router([ModelEntry("m", "x", A)], DEFAULT), "other") == (DEFAULT, None, None)


def test_an_unknown_model_without_a_default_server_is_not_found_and_the_answer_says_where_to_look() -> None:
    with pytest.raises(ModelNotFound) as caught:
        make_router([ModelEntry("secret-model", "x", A)], None).find("other")
    assert "'other'" in caught.value.message
    assert "GET /v1/models lists those that the key may use" in caught.value.message
    assert "secret-model" not in caught.value.message


def test_a_long_model_name_is_clipped_in_the_answer() -> None:
    with pytest.raises(ModelNotFound) as caught:
        make_router([], None).find("x" * 100_000)
    assert len(caught.value.message) < 250


def test_a_request_without_a_model_goes_to_the_default_server_else_to_the_first() -> None:
    entries = [ModelEntry("m", "x", A), ModelEntry("n", "y", B)]
    assert only(make_router(entries, DEFAULT), None) == (DEFAULT, None, None)
    assert only(make_router(entries, None), None) == (A, None, None)


def test_without_a_default_server_the_first_models_servers_serve_what_names_no_model() -> None:
    entries = [ModelEntry("m", "x", A), ModelEntry("m", "x", B)]
    router = make_router(entries, None)
    assert router.first() is router.find("m")
    assert make_router(entries, DEFAULT).first() is None


def _priced(name: str, upstream: str, server: Server, price: str | None) -> ModelEntry:
    return ModelEntry(
        name, upstream, server, 1, PriceList(output_cost_per_token=None if price is None else Decimal(price))
    )


def test_the_default_server_s_own_name_of_a_model_means_its_entry() -> None:
    entry = _priced("good", "qwen", DEFAULT, "1")
    router = make_router([entry, _priced("else", "llama", A, "1")], DEFAULT)
    assert only(router, "qwen") == (DEFAULT, "qwen", entry)
    assert only(router, "llama") == (DEFAULT, None, None)
    assert router.serving(DEFAULT, "qwen") is entry
    assert router.serving(A, "qwen") is None


def test_of_several_entries_of_one_model_the_dearest_is_meant() -> None:
    prices = [None, "1", "3", "2", "0"]
    entries = [_priced(f"m{index}", "qwen", DEFAULT, price) for index, price in enumerate(prices)]
    assert only(make_router(entries, DEFAULT), "qwen")[2] is entries[2]


def test_the_price_of_an_unnamed_model_is_known_if_no_entry_of_the_server_has_one() -> None:
    router = make_router([_priced("m", "x", A, "1"), _priced("n", "y", B, None), _priced("o", "z", C, "0")], DEFAULT)
    assert [router.prices_differ(server) for server in (A, B, C, DEFAULT)] == [True, False, False, False]


def test_without_any_server_the_operator_is_told_what_to_set() -> None:
    with pytest.raises(ModelNotFound, match="HOSTED_VLLM_API_BASE"):
        make_router([], None).undetermined()


def test_names_are_listed_once_and_in_order() -> None:
    assert make_router([ModelEntry(name, "x", A) for name in ("b", "a", "b")], None).names == ("b", "a")


def test_a_request_goes_to_the_server_that_has_what_it_continues() -> None:
    router = make_router([ModelEntry("m", "one", A), ModelEntry("m", "two", B)], DEFAULT)
    for server in (A, B):
        assert {each.server for each in place(router, "m", 3, server=server)} == {server}
    # a server without the model gets none of its requests
    assert {each.server for each in place(router, "m", 2, server=DEFAULT)} == {A, B}


def test_another_name_of_a_model_finds_its_group_and_hides_no_model() -> None:
    entries = [ModelEntry("qwen", "x", A), ModelEntry("phi", "y", B)]
    router = make_router(entries, None, model_group_alias={"gpt-4o": "qwen", "phi": "qwen", "lost": "gone"})
    assert router.find("gpt-4o") is router.find("qwen")
    assert router.alias("gpt-4o") == "qwen"
    assert router.find("phi").name == "phi"
    with pytest.raises(ModelNotFound):
        router.find("lost")


def test_an_update_keeps_what_is_known_of_the_servers_that_stay() -> None:
    limited = ModelEntry("m", "m", A, rpm=5)
    router = make_router([limited, ModelEntry("m", "m", B)], None)
    before, policy = router.find("m").destinations, router.find("m").policy
    before[0].state.in_flight = 7
    slower = attrs.evolve(A, max_concurrent_requests=9)
    models = [attrs.evolve(limited, server=slower, rpm=8), ModelEntry("m", "m", C)]
    router.update(models, None, RoutingSettings(routing_strategy="round-robin"))
    after = router.find("m").destinations
    assert after[0].state is before[0].state
    assert (after[0].state.in_flight, after[0].state.limit) == (7, 9)
    assert after[0].limits is before[0].limits
    assert after[0].limits is not None
    assert after[0].limits.rpm == 8
    assert router.find("m").policy is policy
    assert before[1].state.left
    assert [state.name for state in router.servers] == ["a", "c"]
