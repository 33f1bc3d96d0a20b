"""Costs are exact: configured decimals, integer calculations, one rounding."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.settings import ModelEntry, PriceList, Server, Timeouts
from twisted_vllm.usage.pricing import FREE, PriceTable, cost_of, expected_cost, prices_of
from twisted_vllm.usage.records import Usage


def server(name: str) -> Server:
    return Server(name, "gpu", 8000, False, b"", b"gpu", None, Timeouts())


def listed(**dollars: str) -> PriceList:
    return PriceList(**{name: Decimal(price) for name, price in dollars.items()})


def test_prompt_cached_and_completion_tokens_have_their_prices() -> None:
    prices = prices_of(
        "qwen",
        listed(input_cost_per_token="2e-7", output_cost_per_token="6e-7", cache_read_input_token_cost="5e-8"),
    )
    usage = Usage(prompt_tokens=100, cached_tokens=64, completion_tokens=10, reasoning_tokens=8)
    assert cost_of(usage, prices) == 36 * 200_000 + 64 * 50_000 + 10 * 600_000


def test_cached_tokens_without_a_price_of_their_own_cost_as_any() -> None:
    prices = prices_of("qwen", listed(input_cost_per_token="2e-7"))
    assert cost_of(Usage(prompt_tokens=100, cached_tokens=64), prices) == 100 * 200_000
    free = prices_of("qwen", listed(input_cost_per_token="2e-7", cache_read_input_token_cost="0"))
    assert cost_of(Usage(prompt_tokens=100, cached_tokens=64), free) == 36 * 200_000


def test_audio_costs_by_the_millisecond_and_a_request_as_such() -> None:
    prices = prices_of("whisper", listed(input_cost_per_second="0.0001", input_cost_per_request="0.01"))
    assert cost_of(Usage(audio_ms=12_345), prices) == 12_345 * 100_000 + 10**10


def test_what_has_no_price_costs_nothing() -> None:
    assert prices_of("qwen", PriceList()) is FREE
    assert cost_of(Usage(prompt_tokens=10**9, completion_tokens=10**9), FREE) == 0


def test_cached_tokens_are_limited_to_the_prompt_s() -> None:
    prices = prices_of("qwen", listed(input_cost_per_token="1e-6", cache_read_input_token_cost="1e-7"))
    assert cost_of(Usage(prompt_tokens=10, cached_tokens=50), prices) == 10 * 100_000


def test_a_half_is_rounded_to_even_once_for_a_row() -> None:
    prices = prices_of("qwen", listed(input_cost_per_token="5e-13"))
    assert [cost_of(Usage(prompt_tokens=tokens), prices) for tokens in (1, 2, 3, 4, 5)] == [0, 1, 2, 2, 2]


def test_a_cost_stays_within_a_databases_integer() -> None:
    prices = prices_of("qwen", listed(input_cost_per_token="10000"))
    assert cost_of(Usage(prompt_tokens=2**53), prices) == 2**63 - 1


def test_a_row_has_the_prices_that_were_applied() -> None:
    prices = prices_of("qwen", listed(input_cost_per_token="1e-7", input_cost_per_request="0.010"))
    assert dict(prices.text) == {
        "name": "qwen",
        "input_cost_per_token": "0.0000001",
        "input_cost_per_request": "0.010",
    }
    assert FREE.text == ()


def test_a_model_has_its_own_prices_else_the_default_ones() -> None:
    one, two = server("one:80"), server("two:80")
    own, other = listed(input_cost_per_token="1"), listed(input_cost_per_token="2")
    entries = (
        ModelEntry("a", "m", one, 1, own),
        ModelEntry("a", "m", two, 1, other),
        ModelEntry("a", "n", one, 1, other),
        ModelEntry("b", "m", one),
    )
    table = PriceTable(entries, listed(input_cost_per_token="3"))
    found = [table.of(entry) for entry in (*entries, None)]
    assert [prices.name for prices in found] == ["a", "a", "a", "default", "default"]
    assert [dict(prices.text)["input_cost_per_token"] for prices in found] == ["1", "2", "2", "3", "3"]


def test_a_table_tells_where_it_serves_what_another_does_not() -> None:
    one, two = server("one:80"), server("two:80")
    less = PriceTable((ModelEntry("a", "m", one),), listed())
    more = PriceTable((ModelEntry("a", "m", one), ModelEntry("a", "m", two)), listed())
    assert more.servers_beyond(less) == {"two:80"}
    assert less.servers_beyond(more) == set()


PRICES = st.decimals(0, 10_000, places=12) | st.floats(0, 1, allow_subnormal=False).map(
    lambda dollars: Decimal(repr(dollars))
)
TOKENS = st.integers(0, 2**31)


@given(TOKENS, TOKENS, TOKENS, TOKENS, st.tuples(PRICES, PRICES, PRICES, PRICES, PRICES))
def test_a_cost_is_the_exact_sum_rounded_once(
    prompt: int, cached: int, completion: int, audio_ms: int, dollars: tuple[Decimal, ...]
) -> None:
    cached = min(cached, prompt)
    configured = PriceList(*dollars)
    usage = Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion, audio_ms=audio_ms)
    with localcontext() as context:
        context.prec = 100
        # prices are kept to 24 digits after the point, that of a second to 21
        input_, output, cache, second, request = (
            price.quantize(Decimal(1).scaleb(-21 if place == 3 else -24), ROUND_HALF_EVEN)
            for place, price in enumerate(dollars)
        )
        exact = (prompt - cached) * input_ + cached * cache + completion * output + audio_ms * second / 1000 + request
        expected = int((exact * 10**12).to_integral_value(ROUND_HALF_EVEN))
    assert cost_of(usage, prices_of("x", configured)) == min(expected, 2**63 - 1)


@given(prompt=st.integers(0, 10**6), completion=st.integers(0, 10**6), price=st.decimals(0, 1, places=12))
def test_what_an_answer_may_cost_is_what_it_costs_if_it_uses_that_much(
    prompt: int, completion: int, price: Decimal
) -> None:
    prices = prices_of("m", PriceList(input_cost_per_token=price, output_cost_per_token=2 * price))
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion)
    assert expected_cost(prompt, completion, prices) == cost_of(usage, prices)
