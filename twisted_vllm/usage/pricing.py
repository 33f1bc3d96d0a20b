"""The cost of usage: exact decimals in the configuration, integers in calculations."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import msgspec

from twisted_vllm.api_routes import Route
from twisted_vllm.config.settings import ModelEntry, PriceList
from twisted_vllm.usage.generation_rate import GenerationRate
from twisted_vllm.usage.readers.registry import READERS
from twisted_vllm.usage.records import Usage

#: decimal places of a price in US dollars
_DIGITS = 24
#: price units per picodollar
_TO_PICODOLLARS = 10**12
#: the maximum cost of one response in picodollars: the largest integer of a database
_MAX_COST = 2**63 - 1


class Prices(msgspec.Struct, frozen=True, gc=False):
    """The prices of one model, in 1e-24 US dollars.

    Attributes:
        name: the origin of the prices: the entry's ``model_name``, ``default``, or empty if everything is free.
        prompt: per token of the prompt.
        cached: per token of the prompt from the prefix cache.
        completion: per generated token.
        audio_ms: per millisecond of audio.
        request: per response.
        text: the configured prices for a ledger row, as pairs: `name`, and dollars by LiteLLM's names.
    """

    name: str = ""
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    audio_ms: int = 0
    request: int = 0
    text: tuple[tuple[str, str], ...] = ()


FREE = Prices()


def cost_of(usage: Usage, prices: Prices) -> int:
    """Return the cost of a response in picodollars, rounded once, half to even."""
    prompt = usage.prompt_tokens
    cached = usage.cached_tokens
    if cached > prompt:
        cached = prompt
    exact = (
        (prompt - cached) * prices.prompt
        + cached * prices.cached
        + usage.completion_tokens * prices.completion
        + usage.audio_ms * prices.audio_ms
        + prices.request
    )
    return _rounded(exact)


def expected_cost(prompt: int, completion: int, prices: Prices, audio_ms: int = 0) -> int:
    """Return the maximum cost of a response in picodollars.

    Args:
        prompt: the maximum tokens of the prompt.
        completion: the maximum generated tokens.
        prices: the model's prices.
        audio_ms: the maximum milliseconds of audio.
    """
    if prices is FREE:
        return 0
    exact = prompt * prices.prompt + completion * prices.completion + audio_ms * prices.audio_ms + prices.request
    return _rounded(exact)


def _rounded(exact: int) -> int:
    whole, rest = divmod(exact, _TO_PICODOLLARS)
    doubled = rest * 2
    if doubled > _TO_PICODOLLARS or (doubled == _TO_PICODOLLARS and whole & 1):
        whole += 1
    return min(whole, _MAX_COST)


def prices_of(name: str, configured: PriceList) -> Prices:
    """Convert configured prices to the units of `Prices`."""
    named = {field: price for field, price in configured.named().items() if price is not None}
    if not named:
        return FREE
    prompt = _whole(named.get("input_cost_per_token"))
    cached = named.get("cache_read_input_token_cost")
    return Prices(
        name,
        prompt,
        prompt if cached is None else _whole(cached),
        _whole(named.get("output_cost_per_token")),
        _whole(named.get("input_cost_per_second"), 3),
        _whole(named.get("input_cost_per_request")),
        (("name", name), *((field, f"{price:f}") for field, price in named.items())),
    )


def _whole(price: Decimal | None, less: int = 0) -> int:
    if price is None:
        return 0
    return int(price.scaleb(_DIGITS - less).to_integral_value(ROUND_HALF_EVEN))


class PriceTable:
    """Finds the prices of a request."""

    def __init__(self, models: tuple[ModelEntry, ...], default: PriceList) -> None:
        """Convert the configured prices.

        Args:
            models: the entries of ``model_list``; entries of one model may have different prices.
            default: the prices of entries without prices and of models without an entry.
        """
        self._default = prices_of("default", default)
        # the servers of one service share their prices
        named = {(entry.model_name, entry.prices) for entry in models}
        found = {each: prices_of(*each) for each in named}
        self._of_entry = {entry: found[entry.model_name, entry.prices] for entry in models}

    def of(self, entry: ModelEntry | None) -> Prices:
        """Return the prices of the entry that serves a request; None if there is none."""
        own = FREE
        if entry is not None:
            # a request that was routed before the model list changed costs what its entry said
            own = self._of_entry.get(entry) or prices_of(entry.model_name, entry.prices)
        return self._default if own is FREE else own

    def keeps(self, other: PriceTable) -> bool:
        """Return whether each model of another table still costs the same on the same server."""
        return self._default == other._default and self._served().items() >= other._served().items()

    def servers_beyond(self, other: PriceTable) -> frozenset[str]:
        """Return the names of the servers on which this table has a model that another table does not have there."""
        return frozenset(server for _, server, _ in self._served().keys() - other._served().keys())

    def _served(self) -> dict[tuple[str, str, str], Prices]:
        return {
            (entry.model_name, entry.server.name, entry.upstream_model): prices
            for entry, prices in self._of_entry.items()
        }


class RoutePricing:
    """The shared pricing of all requests for one model, route and method on one server.

    Attributes:
        prices: the model's prices.
        takes_model: whether the requests use a model.
        generates: whether the responses report generated tokens.
        rate: how fast the server generates with the model; None before it is known.
        learned_at: when the last request ended that `rate` learned from, in Unix seconds.
        audio_uploads: whether their forms may contain audio.
        reading: chooses how a response is read, as `ResponseReaders.reading`; None if responses report no usage.
        target: their `Target` in the ledger; None before their first row.
    """

    __slots__ = ("audio_uploads", "generates", "learned_at", "prices", "rate", "reading", "takes_model", "target")

    def __init__(self, route: Route, prices: Prices) -> None:
        """Derive the pricing from the route.

        Args:
            route: the requested route.
            prices: the model's prices.
        """
        self.prices = prices
        self.takes_model = route.takes_model
        self.audio_uploads = route.row.audio_uploads
        # vLLM reports seconds for audio
        self.generates = route.takes_model and route.row.generates and not route.row.audio_uploads
        self.rate: GenerationRate | None = None
        self.learned_at = 0.0
        readers = READERS[route.row.usage]
        self.reading = None if readers is None else readers.reading
        self.target: msgspec.Raw | None = None
