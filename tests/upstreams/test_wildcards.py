"""Entries of the model list whose names have wildcards: which of them serves a model."""

from __future__ import annotations

import pytest

from tests.upstreams.fleets import make_router
from tests.upstreams.test_routing import DEFAULT, A, B, C
from twisted_vllm.config.settings import ModelEntry, RoutingSettings
from twisted_vllm.errors import ModelNotFound
from twisted_vllm.upstreams.router import Router


def servers_of(router: Router, model: str) -> list[str]:
    return [each.server.name for each in router.find(model).destinations]


def test_an_exact_name_wins_and_then_the_most_specific_pattern() -> None:
    entries = [
        ModelEntry("*", "*", A),
        ModelEntry("qwen*", "qwen*", B),
        ModelEntry("qwen-2*", "*", C),
        ModelEntry("qwen-2-7b", "x", A),
    ]
    for order in (entries, entries[::-1]):
        router = make_router(order, DEFAULT)
        found = [servers_of(router, name) for name in ("qwen-2-7b", "qwen-2-1b", "qwen-1", "other")]
        assert found == [["a"], ["c"], ["b"], ["a"]]


def test_what_no_pattern_matches_goes_to_the_default_server() -> None:
    entry = ModelEntry("qwen*", "qwen*", A)
    assert servers_of(make_router([entry], DEFAULT), "llama") == ["default"]
    with pytest.raises(ModelNotFound):
        make_router([entry], None).find("llama")


def test_entries_of_one_pattern_are_one_group_whatever_is_asked() -> None:
    router = make_router([ModelEntry("qwen*", "qwen*", A), ModelEntry("qwen*", "*", B)], None)
    groups = {router.find(f"qwen-{number}") for number in range(1_000)}
    assert len(groups) == 1
    assert servers_of(router, "qwen") == ["a", "b"]
    assert router.names == ("qwen*",)


def test_an_alias_may_lead_to_a_model_that_a_pattern_matches() -> None:
    router = make_router([ModelEntry("qwen*", "*", A)], None, model_group_alias={"fast": "qwen-1", "no": "x"})
    assert servers_of(router, "fast") == ["a"]
    assert (router.alias("fast"), router.aliases) == ("qwen-1", ("fast",))


def test_a_model_of_a_pattern_may_have_fallbacks_of_its_own() -> None:
    fallbacks = {"qwen*": ("small",), "qwen-big": ("qwen-mid",)}
    entries = [ModelEntry("qwen*", "srv-*", A), ModelEntry("small", "small", B)]
    router = make_router(entries, None, fallbacks=fallbacks)
    assert router.find("qwen-any").fallbacks == ("small",)
    big = router.find("qwen-big")
    assert big.fallbacks == ("qwen-mid",)
    assert [each.upstream_model for each in big.destinations] == ["srv--big"]
    # it is no entry of its own
    assert router.names == ("qwen*", "small")
    assert len(router.groups) == 2


def test_a_request_without_a_model_takes_no_name_with_wildcards() -> None:
    router = make_router([ModelEntry("*", "*", A), ModelEntry("qwen", "qwen", B)], None)
    first = router.first()
    assert first is not None
    assert first.name == "qwen"
    router = make_router([ModelEntry("*", "*", A)], None)
    assert router.first() is None
    assert router.undetermined().destinations[0].server is A


def test_a_servers_own_name_has_the_entry_that_serves_it() -> None:
    star, exact = ModelEntry("org/*", "*", A), ModelEntry("chat", "qwen", A)
    router = make_router([star, exact], None)
    assert router.serving(A, "qwen") is exact
    assert router.serving(A, "llama") is star
    assert router.serving(B, "llama") is None
    assert [router.public_name(A, name) for name in ("qwen", "llama")] == ["chat", "org/llama"]


def test_what_waits_for_a_pattern_waits_for_it_after_a_reload() -> None:
    entry = ModelEntry("qwen*", "*", A)
    router = make_router([entry], None)
    before = router.find("qwen-1")
    router.update([entry, ModelEntry("qwen*", "*", B)], None, RoutingSettings())
    assert before.current is router.find("qwen-1")
    assert before.queue is router.find("qwen-1").queue
