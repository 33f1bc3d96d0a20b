"""What usage costs: exact decimals from the configuration, whole numbers in between."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import msgspec

from twisted_vllm.api_routes import Route
from twisted_vllm.config.settings import ModelEntry, PriceList
from twisted_vllm.usage.readers.registry import READERS
from twisted_vllm.usage.records import Usage

#: digits after the point of a dollar that a price is kept to
_DIGITS = 24
#: how many units of a price make a picodollar
_TO_PICODOLLARS = 10**12
#: the highest cost of one answer, in picodollars: the largest integer of a database
_MOST = 2**63 - 1


class Prices(msgspec.Struct, frozen=True, gc=False):
    """What one model costs, in 1e-24 US dollars.

    Attributes:
        name: where the prices come from: the entry's ``model_name``, ``default``, or empty if nothing costs anything.
        prompt: for a token of the prompt.
        cached: for a token of the prompt that came from the prefix cache.
        completion: for a token of the answer.
        audio_ms: for a millisecond of audio.
        request: for each answer.
        text: as configured, for a ledger row, as pairs: `name`, and dollars by LiteLLM's names.
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
    """Return the cost of an answer in picodollars, rounded once, half to even."""
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


def expected_cost(prompt: int, completion: int, prices: Prices) -> int:
    """Return the highest cost of an answer in picodollars.

    Args:
        prompt: the most tokens that its prompt may have.
        completion: the most tokens that it may have itself.
        prices: what its model costs.
    """
    if prices is FREE:
        return 0
    return _rounded(prompt * prices.prompt + completion * prices.completion + prices.request)


def _rounded(exact: int) -> int:
    whole, rest = divmod(exact, _TO_PICODOLLARS)
    doubled = rest * 2
    if doubled > _TO_PICODOLLARS or (doubled == _TO_PICODOLLARS and whole & 1):
        whole += 1
    return min(whole, _MOST)


def prices_of(name: str, configured: PriceList) -> Prices:
    """Return the prices that are configured, in the units of `Prices`."""
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
        """Take the prices of the configuration.

        Args:
            models: the rows of ``model_list``; rows of one name may cost differently on different servers.
            default: the prices of rows that name none, and of models without a row.
        """
        self._default = prices_of("default", default)
        self._by_model: dict[tuple[str, str], Prices] = {}
        for entry in models:
            own = prices_of(entry.model_name, entry.prices)
            self._by_model.setdefault((entry.model_name, entry.server.name), own if own is not FREE else self._default)

    def of(self, model: str, server: str) -> Prices:
        """Return the prices of a model, by the name that callers use, on a server, by its name."""
        return self._by_model.get((model, server), self._default)


class RoutePricing:
    """What is the same for all requests for one model, route and method on one server: found once for all of them.

    Attributes:
        prices: what the model costs.
        takes_model: whether they use a model.
        audio_uploads: whether their forms may hold audio.
        reading: how their answers are read, by `AnswerReaders.reading`; None if those report no usage.
        target: the ledger's reference to what they ask of whom; None before their first row.
    """

    __slots__ = ("audio_uploads", "prices", "reading", "takes_model", "target")

    def __init__(self, route: Route, prices: Prices) -> None:
        """Find out what follows from the route.

        Args:
            route: what they ask for.
            prices: what the model costs.
        """
        self.prices = prices
        self.takes_model = route.takes_model
        self.audio_uploads = route.row.audio_uploads
        readers = READERS[route.row.usage]
        self.reading = None if readers is None else readers.reading
        self.target: msgspec.Raw | None = None
