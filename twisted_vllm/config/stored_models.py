"""Entries of the model list that the database keeps: checked as those of the file, and joined with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec

from twisted_vllm.config.model_ids import ModelIds
from twisted_vllm.config.problems import REFERENCE, ConfigError, Place, Problem, Report
from twisted_vllm.config.providers import as_vllm
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.servers import (
    ENTRY_SECTION,
    PARAM_NAMES,
    Description,
    Entry,
    Row,
    ServerSettings,
    assemble,
    description_of,
)
from twisted_vllm.config.settings import ModelEntry, Server, Settings
from twisted_vllm.config.urls import Address

#: the entries that the database may hold
MAX_MODELS = 500

#: where a server's key stands; it is kept apart, encrypted
API_KEY = "api_key"


class StoredModel(msgspec.Struct, frozen=True):
    """An entry in the database.

    Attributes:
        model_id: its id.
        model_name: the name that callers use.
        litellm_params: the settings of its server, without the key.
        model_info: its description.
        api_key: the server's key, encrypted.
        created: when it was made, in Unix seconds: entries are used in this order.
    """

    model_id: str
    model_name: str
    litellm_params: Mapping[str, Any]
    model_info: Mapping[str, Any] = {}
    api_key: str | None = None
    created: float = 0.0


@attrs.frozen
class CheckedModel:
    """An entry as an administrator sent it, after its check.

    Attributes:
        litellm_params: the settings of its server that are implemented, without the key.
        api_key: the server's key.
        warnings: what is not implemented, and left out.
    """

    litellm_params: Mapping[str, Any]
    api_key: Secret | None
    warnings: tuple[str, ...]


@attrs.frozen
class Joined:
    """The entries of the file and of the database.

    Attributes:
        models: those that can be used, the file's first.
        problems: why others cannot be used, by id.
    """

    models: tuple[ModelEntry, ...]
    problems: Mapping[str, tuple[Problem, ...]]


#: returns the key of a stored entry's server, or raises ValueError with the reason if it cannot be decrypted
Unseal = Callable[[StoredModel], Secret | None]


def check_model(model_name: str, litellm_params: Mapping[str, Any], model_info: Mapping[str, Any]) -> CheckedModel:
    """Check an entry by itself, with the checks of the file. Settings that are null count as left out.

    Raises:
        ConfigError: it cannot be used; each problem has its path.
    """
    report = Report()
    place = Place("", report, {})
    params = {name: value for name, value in litellm_params.items() if value is not None}
    written: dict[str, Any] = {"model_name": model_name, "litellm_params": params, "model_info": model_info}
    for path in _references(written, ""):
        report.refuse(
            path,
            f"must be the value itself: {REFERENCE}NAME is read in the file alone, because a variable of the gateway "
            "could be sent to any server",
        )
    for path in _files(params):
        report.refuse(
            f"litellm_params.{path}",
            "names a file or socket of the gateway's machine, which is for the configuration file alone",
        )
    found = as_vllm(written, place)
    if isinstance(found, dict):
        # An entry of another provider stays as it is: the check below refuses it.
        written, params = found, found["litellm_params"]
    entry = None if report.problems else place.attempt(ENTRY_SECTION, written)
    if entry is None or report.problems:
        raise ConfigError(report.problems)
    return CheckedModel(
        {name: value for name, value in params.items() if name in PARAM_NAMES and name != API_KEY},
        entry.litellm_params.api_key,
        report.warnings(),
    )


class CheckedEntries:
    """The entries of stored models, which are checked once."""

    def __init__(self) -> None:
        """Nothing is checked yet."""
        self._known: dict[str, tuple[StoredModel, Entry, Description]] = {}

    def keep_only(self, models: Iterable[StoredModel]) -> None:
        """Forget all other models."""
        ids = {model.model_id for model in models}
        self._known = {identity: found for identity, found in self._known.items() if identity in ids}

    def of(self, model: StoredModel, place: Place) -> tuple[Entry, Description] | None:
        """Return the entry of a model; None, with the reason in the report, if it cannot be used."""
        known = self._known.get(model.model_id)
        if known is not None and known[0] == model:
            return known[1:]
        written = {
            "model_name": model.model_name,
            "litellm_params": dict(model.litellm_params),
            "model_info": dict(model.model_info),
        }
        entry = place.attempt(ENTRY_SECTION, written)
        if entry is None:
            return None
        created = datetime.fromtimestamp(model.created, UTC).isoformat()
        info = {**model.model_info, "id": model.model_id, "db_model": True, "created_at": created}
        self._known[model.model_id] = (model, entry, description_of(info))
        return self._known[model.model_id][1:]


def join(
    settings: Settings, stored: Iterable[StoredModel], unseal: Unseal, checked: CheckedEntries | None = None
) -> Joined:
    """Return the entries of the file with those of the database that can be used.

    A server that the file names as well has the file's timeouts and limits.

    Args:
        settings: the settings, with the file's entries.
        stored: the entries of the database.
        unseal: returns the key of a stored entry's server.
        checked: the entries that were checked before.
    """
    checked = CheckedEntries() if checked is None else checked
    ordered = sorted(stored, key=lambda model: (model.created, model.model_id))
    problems: dict[str, tuple[Problem, ...]] = {}
    while True:
        report = Report()
        models = {f"[{index}]": model for index, model in enumerate(ordered)}
        rows = [row for path, model in models.items() if (row := _row(model, Place(path, report, {}), unseal, checked))]
        found = _assembled(settings, rows, Place("", report, {}))
        if not report.problems:
            return Joined(_with_one_strategy((*settings.models, *found)), problems)
        for each in report.problems:
            path, end, rest = each.path.partition("]")
            identity = models[path + end].model_id
            problems[identity] = (*problems.get(identity, ()), Problem(rest.removeprefix("."), each.message))
        # what is left may now be all right
        ordered = [model for model in ordered if model.model_id not in problems]


def _files(params: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings that name a file or a socket: administrators are not the operator of the machine."""
    for name, value in params.items():
        if isinstance(value, str) and (name.startswith("ssl_") or (name == "api_base" and value.startswith("unix:"))):
            yield name


def _references(value: object, path: str) -> Iterator[str]:
    """Yield the path of each text that stands for a variable of the environment."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        yield path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _references(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _references(inner, f"{path}[{index}]")


def _row(model: StoredModel, place: Place, unseal: Unseal, checked: CheckedEntries) -> Row | None:
    """Return a stored entry as a row of the list; None, with the reason in the report, if it cannot be used."""
    found = checked.of(model, place)
    if found is None:
        return None
    entry, described = found
    try:
        key = unseal(model)
    except ValueError as error:
        place.key("litellm_params").key(API_KEY).refuse(str(error))
        return None
    if key is None:
        return Row(place, entry, described)
    entry = attrs.evolve(entry, litellm_params=attrs.evolve(entry.litellm_params, api_key=key))
    return Row(place, entry, described)


def _assembled(settings: Settings, rows: Sequence[Row], root: Place) -> list[ModelEntry]:
    """Return the entries of rows, each with its server. What does not fit is refused at the row's place."""
    default = settings.default_server
    address = None if default is None else _address_of(default)
    servers = ServerSettings(
        address,
        None if default is None else default.api_key,
        ssl_verify=settings.usual_tls.verify,
        ssl_certificate=settings.usual_tls.certificate,
    )
    ids = ModelIds(settings.sealing_secret)
    fleet = assemble(rows, servers, settings.timeouts, settings.limits, settings.default_prices, root, ids)
    of_file = {server.url: server for server in settings.servers}
    found = [
        attrs.evolve(entry, server=attrs.evolve(known, api_key=entry.server.api_key))
        if (known := of_file.get(entry.server.url))
        else entry
        for entry in fleet.models
    ]
    placed = [row for row in rows if row.entry.litellm_params.api_base or address]
    _refuse_differences(settings, zip(placed, found, strict=True))
    return found


def _address_of(server: Server) -> Address:
    return Address(server.tls, server.host, server.port, server.base_path.decode("ascii"), server.socket)


def _refuse_differences(settings: Settings, found: Iterable[tuple[Row, ModelEntry]]) -> None:
    """Refuse rows that differ from an entry of the file in what must be the same."""
    prices = {_what_is_served(entry): entry.prices.or_else(settings.default_prices) for entry in settings.models}
    strategies = {entry.model_name: entry.strategy for entry in settings.models if entry.strategy}
    for row, entry in found:
        price = prices.get(_what_is_served(entry))
        if price is not None and price != entry.prices.or_else(settings.default_prices):
            row.place.key("litellm_params").refuse(
                "has other prices than an entry of the configuration file, which is the same model of the same server "
                "by the same model_name (give both the same prices, or change the model_name)"
            )
        own = row.entry.model_info.routing_strategy
        if own is not None and strategies.get(entry.model_name, own) != own:
            row.place.key("model_info").key("routing_strategy").refuse(
                f"differs from that of the model's entry in the configuration file: {strategies[entry.model_name]}"
            )


def _what_is_served(entry: ModelEntry) -> tuple[str, bytes, str]:
    return entry.model_name, entry.server.url, entry.upstream_model


def _with_one_strategy(entries: Sequence[ModelEntry]) -> tuple[ModelEntry, ...]:
    """Return the entries; those of one model_name have the strategy that one of them names."""
    named: dict[str, str] = {}
    for entry in entries:
        if entry.strategy is not None:
            named.setdefault(entry.model_name, entry.strategy)
    return tuple(
        entry
        if entry.strategy == named.get(entry.model_name)
        else attrs.evolve(entry, strategy=named[entry.model_name])
        for entry in entries
    )
