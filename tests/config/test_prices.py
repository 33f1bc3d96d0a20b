"""Prices, and how use is counted, as operators write them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.describe import describe
from twisted_vllm.config.settings import EndUserSettings, LedgerSettings, PriceList


def priced(params: str = "", info: str = "{}", rest: str = "") -> str:
    return f"""
model_list:
  - model_name: a
    litellm_params: {{model: hosted_vllm/m{params}}}
    model_info: {info}
{rest}"""


def prices_of_entry(load_text: Loader, text: str, environ: Mapping[str, str] | None = None) -> PriceList:
    settings = load_text(text, BASE | dict(environ or {}))
    assert settings.warnings == ()
    return settings.models[0].prices


def test_an_entry_names_its_prices_by_litellms_names(load_text: Loader) -> None:
    text = priced(
        ", input_cost_per_token: 0.0000002, output_cost_per_token: 6.0e-7, cache_read_input_token_cost: 0, "
        "input_cost_per_second: 0.0001, input_cost_per_request: 1"
    )
    assert prices_of_entry(load_text, text) == PriceList(
        input_cost_per_token=Decimal("2e-7"),
        output_cost_per_token=Decimal("6e-7"),
        cache_read_input_token_cost=Decimal(0),
        input_cost_per_second=Decimal("0.0001"),
        input_cost_per_request=Decimal(1),
    )


def test_an_entry_without_prices_has_none(load_text: Loader) -> None:
    assert prices_of_entry(load_text, priced()) == PriceList()


def test_prices_may_stand_in_model_info_and_those_of_the_parameters_win(load_text: Loader) -> None:
    text = priced(
        ", input_cost_per_token: 1.0e-6, output_cost_per_token: null",
        "{input_cost_per_token: 5, output_cost_per_token: 2.0e-6, mode: chat}",
    )
    assert prices_of_entry(load_text, text) == PriceList(Decimal("1e-6"), Decimal("2e-6"))


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("1e-7", "0.0000001"),
        ("'0.1'", "0.1"),
        ("0.1", "0.1"),
        ("3.3333333333333334e-08", "0.000000033333333333333334"),
        ("'0.000000000000000000000001'", "1e-24"),
        ("os.environ/PRICE", "0.25"),
        ("0", "0"),
        (".5", "0.5"),
    ],
)
def test_a_price_is_exactly_what_was_written(load_text: Loader, written: str, exact: str) -> None:
    found = prices_of_entry(load_text, priced(f", input_cost_per_token: {written}"), {"PRICE": "0.25"})
    assert found.input_cost_per_token == Decimal(exact)


@pytest.mark.parametrize("wrong", ["-1", "-1.0e-9", ".inf", ".nan", "'-0.5'", "true", "free", "[1]", "'1,5'", "1_0.x"])
@pytest.mark.parametrize("place", ["litellm_params", "model_info", "passthrough.default_prices"])
def test_what_is_no_price_is_refused_at_its_place(problems_of: Refusal, wrong: str, place: str) -> None:
    setting = f"input_cost_per_token: {wrong}"
    text = {
        "litellm_params": priced(f", {setting}"),
        "model_info": priced(info=f"{{{setting}}}"),
        "passthrough.default_prices": priced(rest=f"passthrough: {{default_prices: {{{setting}}}}}"),
    }[place]
    path = place if "." in place else f"model_list[0].{place}"
    (problem,) = problems_of(text)
    assert problem.startswith(f"{path}.input_cost_per_token: must be an amount of US dollars, 0 or more")


def test_a_price_that_must_be_a_slip_is_refused(problems_of: Refusal) -> None:
    (problem,) = problems_of(priced(", output_cost_per_token: 1000000"))
    assert problem == ("model_list[0].litellm_params.output_cost_per_token: must not be more than 10000 US dollars")


def test_a_misspelt_price_is_refused(problems_of: Refusal) -> None:
    (problem,) = problems_of(priced(", input_cost_per_tokn: 1"))
    assert "did you mean 'input_cost_per_token'?" in problem


def test_default_prices_hold_for_the_rest(load_text: Loader) -> None:
    settings = load_text("passthrough: {default_prices: {input_cost_per_token: 1.5e-6}}", BASE)
    assert settings.default_prices == PriceList(Decimal("0.0000015"))


def test_use_is_counted_exactly_unless_the_operator_says_otherwise(load_text: Loader) -> None:
    assert load_text("", BASE).ledger == LedgerSettings(count_stream_usage="inject", usage_headers=())
    settings = load_text(
        "passthrough: {ledger: {count_stream_usage: passive, usage_headers: [X-Project, x-cost-centre]}}", BASE
    )
    assert settings.ledger == LedgerSettings(count_stream_usage="passive", usage_headers=("x-project", "x-cost-centre"))


def test_an_end_user_is_named_by_litellms_header_or_another(load_text: Loader) -> None:
    assert load_text("", BASE).end_users == EndUserSettings(("x-litellm-end-user-id",))
    settings = load_text("passthrough: {end_users: {headers: [X-OpenWebUI-User-Id]}}", BASE)
    assert settings.end_users.headers == ("x-openwebui-user-id",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{ledger: {count_stream_usage: inejct}}", "must be one of inject, passive; did you mean 'inject'?"),
        ("{ledger: {usage_headers: [Authorization]}}", "holds a credential, which is never kept"),
        ("{ledger: {usage_headers: [X-Api-Key]}}", "holds a credential, which is never kept"),
        ("{end_users: {headers: ['x y']}}", "must be the name of a header: letters, digits and hyphens"),
        ("{limits: {assumed_output_tokens: 0}}", "must be 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(problems_of: Refusal, text: str, problem: str) -> None:
    (line,) = problems_of(f"passthrough: {text}")
    assert line.endswith(problem)


def test_the_check_shows_prices_in_full_and_how_use_is_counted(load_text: Loader) -> None:
    text = priced(
        ", input_cost_per_token: 2.0e-7",
        rest="passthrough: {default_prices: {input_cost_per_request: 0.01}, "
        "ledger: {count_stream_usage: passive, usage_headers: [x-project]}}",
    )
    lines = describe(load_text(text, BASE))
    assert [line for line in lines if line.startswith(("model", "stream", "usage h", "default p"))] == [
        "stream usage:   passive: a stream whose client does not ask for usage is estimated by its chunks",
        "usage header:   x-project",
        "default prices: input_cost_per_request 0.01",
        "model:          a -> m at http://gpu:8000, input_cost_per_token 0.0000002",
    ]


PRICED_TWICE = """
model_list:
  - {{model_name: good, litellm_params: {{model: hosted_vllm/m, api_base: "http://one", {first}}}}}
  - {{model_name: good, litellm_params: {{model: hosted_vllm/{model}, api_base: "{base}", {second}}}}}
passthrough: {{default_prices: {{input_cost_per_token: 3}}}}
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("input_cost_per_token: 1", "input_cost_per_token: 2"),
        ("input_cost_per_token: 1", "input_cost_per_token: 1, output_cost_per_token: 1"),
        ("input_cost_per_token: 1", "weight: 2"),
        ("weight: 2", "input_cost_per_token: 1"),
        ("input_cost_per_token: 1, api_key: a", "input_cost_per_token: 2, api_key: b"),
    ],
)
@pytest.mark.parametrize("base", ["http://one", "http://one:80/v1"])
def test_one_model_of_one_server_has_one_price(problems_of: Refusal, first: str, second: str, base: str) -> None:
    assert problems_of(PRICED_TWICE.format(first=first, second=second, base=base, model="m")) == [
        "model_list[1].litellm_params: has other prices than model_list[0], which is the same model of the same server "
        "by the same model_name (give both the same prices, take one out, or change its model_name)"
    ]


@pytest.mark.parametrize(
    ("second", "base", "model"),
    [
        ("input_cost_per_token: 1.0", "http://one", "m"),
        ("input_cost_per_token: 2", "http://two", "m"),
        ("input_cost_per_token: 2", "http://one/below", "m"),
        ("input_cost_per_token: 2", "http://one", "other"),
    ],
    ids=["the same price", "another server", "another base path", "another model of the server"],
)
def test_entries_of_one_name_that_something_tells_apart_may_have_their_prices(
    load_text: Loader, second: str, base: str, model: str
) -> None:
    text = PRICED_TWICE.format(first="input_cost_per_token: 1", second=second, base=base, model=model)
    assert len(load_text(text, BASE).models) == 2


def test_an_entry_without_prices_is_charged_the_default_ones(load_text: Loader) -> None:
    text = PRICED_TWICE.format(first="input_cost_per_token: 3", second="weight: 2", base="http://one", model="m")
    assert len(load_text(text, BASE).models) == 2
