"""The entries of the model list with what their servers say of their models, for LiteLLM's ``/model/info``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256

import attrs
import msgspec

from twisted_vllm.config.name_patterns import callers_name, is_pattern
from twisted_vllm.config.settings import ModelEntry, PriceList
from twisted_vllm.upstreams.router import Router
from twisted_vllm.upstreams.served_models import Card, ServedModels


class ListedEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of the model list, or a model of the default server that has none.

    Attributes:
        entry: the entry, with the prices that count for it.
        card: what its server says of the model; None if it says nothing.
    """

    entry: ModelEntry
    card: Card | None

    @property
    def length(self) -> int | None:
        """The tokens of prompt and completion together; None if the server does not tell."""
        found = None if self.card is None else self.card.get("max_model_len")
        return found if isinstance(found, int) else None


def listed_entries(
    entries: Iterable[ModelEntry], router: Router, served: ServedModels, default_prices: PriceList, *, expand: bool
) -> Iterator[ListedEntry]:
    """Yield all entries, and the models of the default server that have none.

    Args:
        entries: the entries of the model list; of those of one service, the first counts.
        router: knows which models have an entry.
        served: what servers said of their models.
        default_prices: the prices of entries that name none.
        expand: whether an entry with wildcards is also there once for each model that it matches, and any entry once
            for each further name of its model (``model_group_alias``).
    """
    seen = set()
    aliases: dict[str | None, list[str]] = {}
    for alias in router.aliases if expand else ():
        aliases.setdefault(router.alias(alias), []).append(alias)
    for entry in entries:
        if entry.model_id and entry.model_id in seen:
            continue
        seen.add(entry.model_id)
        entry = attrs.evolve(entry, prices=entry.prices.or_else(default_prices))
        card = served.cards(entry.server).get(entry.upstream_model)
        yield ListedEntry(entry, card)
        for alias in aliases.get(entry.model_name, ()):
            yield ListedEntry(attrs.evolve(entry, model_name=alias), card)
        if expand and is_pattern(entry.model_name):
            for name, card in served.cards(entry.server).items():
                public = callers_name(entry.model_name, entry.upstream_model, name)
                if public is not None and router.matches(public, entry.model_name):
                    yield ListedEntry(attrs.evolve(entry, model_name=public, upstream_model=name), card)
    if router.default is not None:
        server = router.default.destinations[0].server
        for name, card in served.cards(server).items():
            if router.serving(server, name) is None and router.matches(name, ""):
                # there is one default server; its address must not be guessed by the id
                identity = sha256(f"default\n{name}".encode("utf-8", "replace")).hexdigest()
                yield ListedEntry(ModelEntry(name, name, server, prices=default_prices, model_id=identity), card)
