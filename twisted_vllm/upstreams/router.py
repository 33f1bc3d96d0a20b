"""Chooses the server for a model.

Entries with the same ``model_name`` share its requests by weight, with nginx's smooth weighted round robin
(``src/http/ngx_http_upstream_round_robin.c``): each pick adds every weight to its entry, takes the highest entry and
subtracts the total from it. It needs no randomness, and spreads the picks of a heavy entry evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import attrs

from twisted_vllm.config.settings import ModelEntry, Server
from twisted_vllm.errors import ModelNotFound

#: characters of a caller's model name to quote in a message
CLIP = 100


@attrs.frozen
class Destination:
    """The destination of a request.

    Attributes:
        server: the server.
        upstream_model: the server's name of the model; None if the body stays unchanged.
        entry: the entry that serves it, whose price and name count; None if there is none.
    """

    server: Server
    upstream_model: str | None
    entry: ModelEntry | None = None


class _Group:
    """The entries of one model name, and the state of their round robin."""

    def __init__(self, entries: Sequence[ModelEntry]) -> None:
        self._destinations = [
            Destination(entry.server, None if entry.upstream_model == entry.model_name else entry.upstream_model, entry)
            for entry in entries
        ]
        self._weights = [entry.weight for entry in entries]
        self._total = sum(self._weights)
        self._current = [0] * len(entries)

    def pick(self, server: Server | None) -> Destination:
        if server is not None:
            for destination in self._destinations:
                if destination.server.name == server.name:
                    return destination
        if len(self._destinations) == 1:
            return self._destinations[0]
        current = self._current
        best = 0
        for index, weight in enumerate(self._weights):
            current[index] += weight
            if current[index] > current[best]:
                best = index
        current[best] -= self._total
        return self._destinations[best]


def _price(entry: ModelEntry) -> tuple[Decimal, ...]:
    """Return an entry's prices, in the order in which they decide which entry is dearer."""
    prices = entry.prices
    named = (
        prices.output_cost_per_token,
        prices.input_cost_per_token,
        prices.input_cost_per_second,
        prices.input_cost_per_request,
    )
    return tuple(price or Decimal(0) for price in named)


class Router:
    """Chooses a server for each request.

    Args:
        models: the rows of ``model_list``, in order.
        default_server: the server for models without a row and for requests without a model; None for none.
    """

    def __init__(self, models: Sequence[ModelEntry], default_server: Server | None) -> None:
        self.update(models, default_server)

    def update(self, models: Sequence[ModelEntry], default_server: Server | None) -> None:
        """Use other servers from now on; the arguments are the constructor's."""
        grouped: dict[str, list[ModelEntry]] = {}
        for entry in models:
            grouped.setdefault(entry.model_name, []).append(entry)
        self._groups = {name: _Group(entries) for name, entries in grouped.items()}
        self._default = Destination(default_server, None) if default_server is not None else None
        # by the server and its own name of the model; of several entries, the dearest
        self._served: dict[tuple[bytes, str], ModelEntry] = {}
        for entry in models:
            key = (entry.server.url, entry.upstream_model)
            self._served[key] = max(self._served.get(key, entry), entry, key=_price)
        #: the destinations of the default server's own names for configured models
        self._direct = {
            name: Destination(default_server, None, entry)
            for (url, name), entry in self._served.items()
            if default_server is not None and url == default_server.url
        }
        self._priced = {entry.server.url for entry in models if any(_price(entry))}
        self._unnamed = self._default
        if self._unnamed is None and models:
            self._unnamed = Destination(models[0].server, models[0].upstream_model, models[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The configured model names, in order and without duplicates."""
        return tuple(self._groups)

    def route(self, model: str | None, server: Server | None = None) -> Destination:
        """Return the destination of a request for `model`, and advance the round robin; None means no model.

        Args:
            model: the model.
            server: the server that has what the request continues: it is chosen if an entry of the model names it.

        Raises:
            ModelNotFound: no entry has the name and there is no default server.
        """
        if model is None:
            return self.destination_for_undetermined()
        group = self._groups.get(model)
        if group is not None:
            return group.pick(server)
        direct = self._direct.get(model)
        if direct is not None:
            # no caller avoids an entry's price and limits by the server's own name
            return direct
        if self._default is None:
            raise ModelNotFound(
                f"No server is configured for the model {model[:CLIP]!r}. GET /vllm/v1/models lists the models.",
                param="model",
            )
        return self._default

    def destination_for_undetermined(self) -> Destination:
        """Return the destination of a request without a model: the default server, else the first entry.

        Raises:
            ModelNotFound: no server is configured.
        """
        if self._unnamed is None:
            raise ModelNotFound("No vLLM server is configured. The operator sets HOSTED_VLLM_API_BASE or model_list.")
        return self._unnamed

    def serving(self, server: Server, name: str) -> ModelEntry | None:
        """Return the entry whose model a server serves under its own name `name`; None if there is none."""
        return self._served.get((server.url, name))

    def prices_differ(self, server: Server) -> bool:
        """Return whether the price of a request to a server depends on which of its models serves it."""
        return server.url in self._priced
