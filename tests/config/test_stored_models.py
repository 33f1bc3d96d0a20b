"""Entries of the database, joined with those of the file."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import pytest

from tests.config.config_harness import Loader
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.stored_models import MAX_MODELS, CheckedEntries, StoredModel, check_model, join

FILE = """
model_list:
  - model_name: qwen
    litellm_params: {model: hosted_vllm/Qwen, api_base: 'http://gpu-1:8000', api_key: of-file, timeout: 60}
passthrough:
  api_base: http://default:8000
  api_key: default-key
  servers: {'http://gpu-1:8000': {max_concurrent_requests: 7}}
  limits: {max_concurrent_requests: 100}
"""


@pytest.fixture
def settings(load_text: Loader) -> Settings:
    return load_text(FILE)


def stored(model_id: str, name: str = "qwen", info: Any = None, created: float = 0.0, **params: object) -> StoredModel:
    return StoredModel(model_id, name, {"model": "hosted_vllm/Qwen", **params}, info or {}, None, created)


def no_key(model: StoredModel) -> Secret | None:
    return None


def test_entries_follow_those_of_the_file_in_the_order_of_their_making(settings: Settings) -> None:
    joined = join(
        settings,
        [stored("c", created=2.0, api_base="http://c"), stored("b", created=1.0, api_base="http://b")],
        no_key,
    )
    assert [entry.server.name for entry in joined.models] == ["gpu-1:8000", "b:80", "c:80"]
    assert joined.problems == {}
    # the settings of all servers hold for theirs as well
    assert joined.models[1].server.max_concurrent_requests == 100


def test_a_server_of_the_file_keeps_its_limits_and_the_entry_its_key(settings: Settings) -> None:
    model = stored("a", "large", api_base="http://gpu-1:8000/v1", timeout=5, max_parallel_requests=1)
    entry = join(settings, [model], lambda _: Secret("own")).models[-1]
    assert entry.server == attrs.evolve(settings.models[0].server, api_key=Secret("own"))


def test_without_a_server_it_is_the_default_one_with_its_key(settings: Settings) -> None:
    entry = join(settings, [stored("a")], no_key).models[-1]
    assert entry.server == settings.default_server
    without = attrs.evolve(settings, default_server=None)
    joined = join(without, [stored("a"), stored("b", api_base="http://b")], no_key)
    assert [entry.server.name for entry in joined.models] == ["gpu-1:8000", "b:80"]
    [problem] = joined.problems["a"]
    assert problem.path == "litellm_params.api_base"


def test_what_cannot_be_used_is_left_out_with_its_reason(settings: Settings) -> None:
    def unseal(model: StoredModel) -> Secret | None:
        if model.model_id == "b":
            raise ValueError("was encrypted with another key")
        return None

    models = [
        stored("a", api_base="nonsense"),
        stored("b", api_base="http://b"),
        stored("c", api_base="http://c"),
        StoredModel("d", "bad?", {"model": "hosted_vllm/m"}),
    ]
    joined = join(settings, models, unseal)
    assert [entry.server.name for entry in joined.models] == ["gpu-1:8000", "c:80"]
    assert {identity: [each.path for each in found] for identity, found in joined.problems.items()} == {
        "a": ["litellm_params.api_base"],
        "b": ["litellm_params.api_key"],
        "d": ["model_name"],
    }


def test_the_younger_of_two_prices_is_left_out(settings: Settings) -> None:
    joined = join(
        settings,
        [
            stored("young", "x", created=2.0, api_base="http://x", input_cost_per_token=2),
            stored("old", "x", created=1.0, api_base="http://x", input_cost_per_token=1),
        ],
        no_key,
    )
    assert [entry.prices.input_cost_per_token for entry in joined.models[1:]] == [Decimal(1)]
    assert list(joined.problems) == ["young"]


def test_one_strategy_holds_for_all_entries_of_a_name(settings: Settings) -> None:
    joined = join(settings, [stored("a", info={"routing_strategy": "session"}, api_base="http://a")], no_key)
    assert [entry.strategy for entry in joined.models] == ["session", "session"]


def test_entries_are_checked_once(settings: Settings) -> None:
    models = [stored(str(number), api_base=f"http://gpu-{number}") for number in range(MAX_MODELS)]
    checked = CheckedEntries()
    first = join(settings, models, no_key, checked)
    changed = [*models[1:], stored("0", api_base="http://other")]
    second = join(settings, changed, no_key, checked)
    assert (len(first.models), first.problems) == (MAX_MODELS + 1, {})
    assert {entry.server.name for entry in second.models} - {entry.server.name for entry in first.models} == {
        "other:80"
    }
    checked.keep_only([])
    assert join(settings, changed, no_key, checked) == second


def test_many_unusable_entries_are_all_named(settings: Settings) -> None:
    joined = join(settings, [stored(str(number), api_base="nonsense") for number in range(MAX_MODELS)], no_key)
    assert len(joined.problems) == MAX_MODELS


def test_an_entry_is_checked_by_itself_as_in_the_file() -> None:
    checked = check_model("qwen", {"model": "hosted_vllm/Qwen", "api_key": "k", "weight": None, "n": 1}, {"mode": "x"})
    assert (checked.litellm_params, checked.api_key) == ({"model": "hosted_vllm/Qwen"}, Secret("k"))
    assert checked.warnings == ("litellm_params.n: not implemented yet: ignored",)
    with pytest.raises(ConfigError) as error:
        check_model("qwen", {"model": "os.environ/MODEL"}, {})
    assert [problem.path for problem in error.value.problems] == ["litellm_params.model"]
