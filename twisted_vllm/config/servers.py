"""The vLLM servers in the file, resolved so that each server is one value, whichever settings name it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import attrs
import msgspec

from twisted_vllm.config import litellm, restricting
from twisted_vllm.config.checks import checker, kind_of, list_of, one_of, optional, seconds, secret, text, whole
from twisted_vllm.config.declaration import (
    Inherited,
    Items,
    Required,
    Section,
    Setting,
    Unknown,
    section,
    setting,
    settings_of,
)
from twisted_vllm.config.log_bodies import log_mode
from twisted_vllm.config.model_ids import ModelIds
from twisted_vllm.config.name_patterns import MAX_WILDCARDS, WILDCARD
from twisted_vllm.config.problems import REFERENCE, Place, Rejected, nearest
from twisted_vllm.config.providers import PROVIDER, Skipped, as_vllm
from twisted_vllm.config.routing import routing_strategy, zmq_endpoint
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.server_tls import TLS_SETTINGS, ServerTls, TlsParams, flag_or_file, resolve_tls
from twisted_vllm.config.settings import Limits, ModelEntry, PriceList, Server, Timeouts
from twisted_vllm.config.urls import Address, api_base, is_name

#: the values of ``discovery``
DNS, SRV = DISCOVERIES = ("dns", "srv")

#: the name of an SRV record (RFC 2782)
_SERVICE = re.compile(r"_[a-z0-9-]+\._(?:tcp|udp)\.[a-z0-9]")
_EXAMPLE_BASE = "http://gpu-1:8000"
#: for the example: two servers share a model's requests
SECOND_ENTRY = """\
- model_name: qwen
  litellm_params:
    model: hosted_vllm/Qwen/Qwen2.5-7B-Instruct
    api_base: https://gpu-2.example.com/vllm/v1
    weight: 1
"""
#: the prices of the example, by name; of no model in particular
_EXAMPLE_PRICES = {
    "input_cost_per_token": "0.0000002",
    "output_cost_per_token": "0.0000006",
    "cache_read_input_token_cost": "0.00000005",
}
_PRICES = tuple(
    attrs.evolve(each, example=_EXAMPLE_PRICES.get(each.name, ""), block="") for each in settings_of(PriceList)
)


@checker("text", "* for any text")
def model_name(value: object, place: Place) -> str:
    """Check for the name of a model, or of all models that it matches with ``*``."""
    found = text(value, place)
    if "?" in found:
        raise Rejected("must not have a question mark (the only wildcard is *)")
    if found.count(WILDCARD) > MAX_WILDCARDS:
        raise Rejected(f"has over {MAX_WILDCARDS} wildcards")
    return found


@checker("text", f"{PROVIDER}/NAME")
def hosted_model(value: object, place: Place) -> str:
    """Check for ``hosted_vllm/NAME`` and return NAME."""
    provider, _, name = text(value, place).partition("/")
    if provider != PROVIDER:
        raise Rejected(f"must be {PROVIDER}/NAME (NAME is the name that the server uses)")
    if not name.strip():
        raise Rejected(f"names no model after {PROVIDER}/ (write the name that the server uses)")
    return model_name(name, place)


@attrs.frozen
class ModelParams:
    """The ``litellm_params`` of an entry; in the file, its prices are among its other settings."""

    model: str = setting(
        Required(f"write {PROVIDER}/NAME"),
        hosted_model,
        f"{PROVIDER}/ and the name that the server uses (vLLM's --served-model-name). A * in it stands for what the * "
        f"of model_name stands for: {PROVIDER}/*. openai/NAME, custom_openai/NAME, text-completion-openai/NAME and "
        "vllm/NAME mean the same, if api_base is not that of a known service.",
        example="hosted_vllm/Qwen/Qwen2.5-7B-Instruct",
    )
    api_base: Address | None = setting(
        None,
        optional(api_base, "the server of passthrough.api_base", empty=True),
        "The URL of the server, or unix: and the path of its socket (vLLM's --uds): unix:/run/vllm.sock. A trailing "
        "/v1 makes no difference.",
        example=_EXAMPLE_BASE,
    )
    api_key: Secret | None = setting(
        None,
        optional(secret, "none; on the default server, passthrough.api_key", empty=True),
        "The server's own key (vLLM's --api-key).",
        example="os.environ/HOSTED_VLLM_API_KEY",
    )
    timeout: float | None = setting(
        None,
        optional(seconds(), "passthrough.timeouts.total"),
        "How long a whole exchange with this server may take. Where entries of one server differ, the longest is used.",
        example="600",
    )
    max_parallel_requests: int | None = setting(
        None,
        optional(whole(), "passthrough.limits.max_concurrent_requests"),
        "Requests in flight at this server at a time; more are queued. Where entries of one server differ, the "
        "smallest is used.",
        unit="requests",
        example="64",
    )
    weight: int = setting(
        1,
        whole(),
        "The entry's share of the requests for its model_name, among entries of the same order.",
        example="2",
    )
    discovery: str | None = setting(
        None,
        optional(one_of(*DISCOVERIES), "api_base is one server"),
        "How servers are found by DNS. dns: every address of api_base's host is a server of its own, such as the pods "
        "of a headless Kubernetes service. srv: api_base names an SRV record (http://_http._tcp.vllm.default.svc), "
        "which gives ports, priorities and weights.",
        example="dns",
    )
    order: int = setting(
        1,
        whole(),
        "Entries of a model_name with the lowest number are used; the others only while none of these can serve.",
    )
    rpm: int | None = setting(
        None,
        optional(whole(), "no limit"),
        "Requests in a minute that this entry gets, whoever sends them. Others go to the model's other entries, or "
        "wait.",
        unit="requests",
        example="600",
    )
    tpm: int | None = setting(
        None,
        optional(whole(), "no limit"),
        "Tokens in a minute that this entry gets.",
        unit="tokens",
        example="1000000",
    )
    prices: PriceList = attrs.field(factory=PriceList)
    tls: TlsParams = attrs.field(factory=TlsParams)


def _model_params(**found: Any) -> ModelParams:
    prices = PriceList(**{each.attribute: found.pop(each.attribute, None) for each in _PRICES})
    return ModelParams(prices=prices, tls=_tls_params(found), **found)


def _tls_params(found: dict[str, Any]) -> TlsParams:
    """Take the settings of TLS out of others, by attribute."""
    return TlsParams(**{each.attribute: found.pop(each.attribute, None) for each in TLS_SETTINGS})


@attrs.frozen
class ModelInfo(PriceList):
    """The ``model_info`` of an entry."""

    routing_strategy: str | None = setting(
        None,
        optional(routing_strategy, "router_settings.routing_strategy"),
        "How the servers of this model share its requests. The same in all entries of a model_name that name one.",
        example="session",
    )
    log_bodies: str | None = setting(
        None,
        optional(log_mode, "passthrough.log_bodies"),
        "What traces and sinks get of this model's prompts and answers.",
        example="metadata",
    )


@attrs.frozen
class Entry:
    """One entry of ``model_list``, checked by itself."""

    model_name: str = setting(
        Required("write the name that callers use"),
        model_name,
        'The name that callers use: the "model" of a request. A * in it stands for any text (qwen*): the entry serves '
        "all models that it matches and that no other entry names; of several such entries, the one with the longest "
        "model_name.",
        example="qwen",
    )
    litellm_params: ModelParams = setting(
        Required(f"write model: {PROVIDER}/NAME and api_base below it"),
        Section(
            _model_params,
            (*settings_of(ModelParams), *TLS_SETTINGS, *_PRICES),
            ignored=litellm.ENTRY_PARAMS,
            restricting=restricting.ENTRY_PARAMS,
            hints={"base_url": "write api_base", "routing_strategy": "move it to model_info"},
            unknown=Unknown.WARN,
        ),
        "Where the model runs, and what it costs in US dollars: exact decimals, with or without quotes. An entry that "
        "names no price has passthrough.default_prices.",
    )
    model_info: ModelInfo = setting(
        ModelInfo(),
        section(ModelInfo, ignored=litellm.MODEL_INFO, restricting=restricting.MODEL_INFO, unknown=Unknown.ACCEPT),
        "LiteLLM's description of the model. Prices may stand here as well; those of litellm_params win.",
        example="{routing_strategy: prefix}  # example; left out: router_settings.routing_strategy",
    )

    @property
    def prices(self) -> PriceList:
        """The model's prices: as in LiteLLM, the parameters win over the description."""
        return self.litellm_params.prices.over(self.model_info)


ENTRY_SECTION = section(
    Entry,
    ignored=litellm.ENTRY,
    hints={
        **dict.fromkeys(("model", "api_base", "api_key", "weight", "order", "discovery"), "move it to litellm_params"),
        "routing_strategy": "move it to model_info",
    },
    unknown=Unknown.WARN,
)

#: the names of the settings of ``litellm_params``
PARAM_NAMES = frozenset(
    name
    for each in settings_of(Entry)
    if each.name == "litellm_params" and isinstance(each.check, Section)
    for name in each.check.names
)


@attrs.frozen
class Description:
    """The ``model_info`` of an entry.

    Attributes:
        text: all of it, in JSON.
        own_id: the id that it names; empty if it names none.
    """

    text: bytes = b"{}"
    own_id: str = ""


@attrs.frozen
class Row:
    """An entry of ``model_list`` and its place.

    Attributes:
        place: its place.
        entry: the entry.
        described: its ``model_info`` as it is written.
    """

    place: Place
    entry: Entry
    described: Description = Description()


def description_of(info: object) -> Description:
    """Return the ``model_info`` of an entry, without what stands for variables of the environment."""
    found = {
        name: value
        for name, value in (info.items() if isinstance(info, dict) else ())
        if isinstance(name, str) and value is not None and REFERENCE not in repr(value)
    }
    own = found.get("id")
    try:
        return Description(msgspec.json.encode(found), own if isinstance(own, str) else "")
    except (TypeError, ValueError, RecursionError):
        # YAML has values that JSON has not
        return Description()


@checker("row")
def row(value: object, place: Place) -> Row | None:
    """Check one entry; return ``None`` for another provider's, which is skipped with a warning."""
    found = as_vllm(value, place)
    if isinstance(found, Skipped):
        place.warn(f"{_entry_name(value)} is {found.reason}")
        return None
    entry = ENTRY_SECTION(found, place)
    if place.report.refused_below(place.path):
        raise Rejected(None)
    return Row(place, entry, description_of(value.get("model_info") if isinstance(value, dict) else None))


@checker("list of models")
def rows(value: object, place: Place) -> tuple[Row, ...]:
    """Check all entries."""
    found = tuple(each for each in list_of(row)(value, place) if each is not None)
    if value and not found and not place.report.refused_below(place.path):
        place.warn("every entry was skipped, so that no model of the list is served")
    return found


def _entry_name(value: Any) -> str:
    name = value.get("model_name")
    return f"the entry '{name[:80]}'" if isinstance(name, str) and name.isprintable() else "the entry"


def _per_server(holder: type[attrs.AttrsInstance], place: str) -> tuple[Setting, ...]:
    return tuple(
        attrs.evolve(each, default=Inherited(f"{place}.{each.name}"), example=each.per_server)
        for each in settings_of(holder)
        if each.per_server
    )


def _hints(holder: type[attrs.AttrsInstance], place: str) -> dict[str, str]:
    return {
        each.name: f"it concerns {each.concerns}: move it to {place}" for each in settings_of(holder) if each.concerns
    }


#: the timeouts and limits that may differ per server
SERVER_TIMEOUTS = _per_server(Timeouts, "passthrough.timeouts")
SERVER_LIMITS = _per_server(Limits, "passthrough.limits")

#: where a server tells what is in its prefix cache
KV_EVENTS = (
    Setting(
        None,
        optional(zmq_endpoint, "none"),
        "Where this server publishes the events of its prefix cache (the endpoint of vLLM's --kv-events-config), for "
        "routing_strategy: prefix, which then knows what is cached there. Needs the extra kv-events.",
        name="kv_events",
        attribute="kv_events",
        example="tcp://gpu-1:5557",
    ),
    Setting(
        None,
        optional(zmq_endpoint, "none"),
        "Where it sends events again that were missed (its replay_endpoint).",
        name="kv_events_replay",
        attribute="kv_events_replay",
        example="tcp://gpu-1:5558",
    ),
)

OVERRIDE_SECTION: Section[dict[str, Any]] = Section(
    dict,
    (
        Setting(
            {},
            Section(dict, SERVER_TIMEOUTS, hints=_hints(Timeouts, "passthrough.timeouts")),
            "How long the gateway waits for this server. total wins over an entry's timeout.",
            name="timeouts",
            attribute="timeouts",
        ),
        *SERVER_LIMITS,
        *(attrs.evolve(each, example="null") for each in TLS_SETTINGS),
        *KV_EVENTS,
    ),
    hints=_hints(Limits, "passthrough.limits"),
)


@attrs.frozen
class Override:
    """The entry of ``passthrough.servers`` for one server.

    Attributes:
        place: its place.
        timeouts: the timeouts that differ for it, by name.
        limits: the limits that differ for it, by name.
        tls: how to speak TLS to it.
        kv_events: where it publishes the events of its prefix cache, and replays them, by name.
    """

    place: Place
    timeouts: Mapping[str, Any]
    limits: Mapping[str, Any]
    tls: TlsParams
    kv_events: Mapping[str, str | None]


@checker("mapping of api_base to settings")
def overrides(value: object, place: Place) -> Mapping[Address, Override]:
    """Check for a mapping of ``api_base`` to the server's own settings."""
    if value is not None and not isinstance(value, dict):
        raise Rejected(f"must be a mapping of api_base to settings, not {kind_of(value)}")
    found: dict[Address, Override] = {}
    for index, (base, content) in enumerate((value or {}).items()):
        # Use the index in place of the name until it is known to be a URL without a password.
        address = place.item(index).attempt(api_base, base)
        if address is None:
            continue
        here = place.at(f"{place.path}.{address.url}")
        if address in found:
            here.refuse("stands twice, in two spellings (keep one)")
        limits = here.attempt(OVERRIDE_SECTION, content) or {}
        events = {each.attribute: limits.pop(each.attribute, None) for each in KV_EVENTS}
        if events["kv_events_replay"] is not None and events["kv_events"] is None:
            here.key("kv_events_replay").refuse("needs kv_events")
        if events["kv_events"] is not None and find_spec("zmq") is None:
            here.key("kv_events").refuse("needs pyzmq (pip install 'twisted-vllm[kv-events]')")
        found[address] = Override(
            here, limits.pop("timeouts", {}), tls=_tls_params(limits), kv_events=events, limits=limits
        )
    return found


@attrs.frozen
class ServerSettings:
    """The settings of vLLM servers. They are resolved into `Fleet`, and nothing else reads them."""

    api_base: Address | None = setting(
        None,
        optional(api_base, "none", empty=True),
        "The default server: for requests whose model is not in model_list, and for requests without a model, such as "
        "GET /vllm/metrics.",
        example="http://127.0.0.1:8000",
        environment=(
            "VLLM_PASSTHROUGH_API_BASE",
            "VLLM_PASSTHROUGH_HOSTED_VLLM_API_BASE",
            "HOSTED_VLLM_API_BASE",
        ),
    )
    api_key: Secret | None = setting(
        None,
        optional(secret, "none", empty=True),
        "The default server's own key (vLLM's --api-key). It is sent to no other server.",
        example="os.environ/HOSTED_VLLM_API_KEY",
        environment=("VLLM_PASSTHROUGH_API_KEY", "VLLM_PASSTHROUGH_HOSTED_VLLM_API_KEY", "HOSTED_VLLM_API_KEY"),
    )
    servers: Mapping[Address, Override] = setting(
        {},
        overrides,
        "What differs for one server, by its api_base: timeouts that concern servers, two of the limits, and TLS. "
        "max_concurrent_requests wins over an entry's max_parallel_requests, and ssl_... over the entries' own.",
        items=Items(OVERRIDE_SECTION, ".API_BASE", key=_EXAMPLE_BASE),
    )
    ssl_verify: bool | str | None = setting(
        None,
        optional(flag_or_file, "true"),
        "ssl_verify of all servers with https:// that do not say it themselves: true, false or a file.",
        block="litellm_settings",
    )
    ssl_certificate: str | None = setting(
        None,
        optional(text, "none", empty=True),
        "ssl_certificate of all servers with https:// that do not say it themselves: a file that holds the key too.",
        block="litellm_settings",
    )


@attrs.frozen
class Fleet:
    """All servers in use.

    Attributes:
        default: serves requests for models without an entry.
        models: the entries of ``model_list`` with their servers.
    """

    default: Server | None
    models: tuple[ModelEntry, ...]


@attrs.frozen
class _Placed:
    """An entry, and the server that runs it."""

    place: Place
    entry: Entry
    address: Address
    key: Secret | None
    described: Description


def assemble(
    table: Sequence[Row],
    servers: ServerSettings,
    timeouts: Timeouts,
    limits: Limits,
    default_prices: PriceList,
    root: Place,
    ids: ModelIds,
) -> Fleet:
    """Assign each entry its server; report problems at the place of the entry or of the override, from `root` on.

    Args:
        table: the entries.
        servers: the settings of servers.
        timeouts: those of servers that set no others.
        limits: likewise.
        default_prices: the prices of entries that name none.
        root: the place of the settings.
        ids: makes the ids of entries that have none.
    """
    default = servers.api_base
    placed: list[_Placed] = []
    for row in table:
        params = row.entry.litellm_params
        address = params.api_base or default
        if address is None:
            row.place.key("litellm_params").key("api_base").refuse(
                "is missing (write it, or set HOSTED_VLLM_API_BASE for all entries without one)"
            )
            continue
        _check_discovery(params.discovery, address, row.place.key("litellm_params"))
        # The default server's key goes to that server alone.
        key = params.api_key or (servers.api_key if address == default else None)
        _check_wildcards(row.entry, row.place.key("litellm_params"))
        placed.append(_Placed(row.place, row.entry, address, key, row.described))

    longest = _longest_timeouts(placed)
    smallest = _smallest_limits(placed)
    strategies = _strategies(placed)
    _refuse_two_prices(placed, default_prices)
    _refuse_strangers(servers.servers, [each.address for each in placed] + ([default] if default else []))
    tls = _tls_of(placed, servers, root)

    usual_limits = {each.attribute: getattr(limits, each.attribute) for each in SERVER_LIMITS}

    @cache
    def server(address: Address, key: Secret | None) -> Server:
        own_timeouts: dict[str, Any] = {}
        if (address, key) in longest:
            own_timeouts["total"] = longest[address, key]
        events: Mapping[str, str | None] = {}
        own_limits = dict(usual_limits)
        if address in smallest:
            own_limits["max_concurrent_requests"] = smallest[address]
        if address in servers.servers:
            own_timeouts |= servers.servers[address].timeouts
            own_limits |= servers.servers[address].limits
            events = servers.servers[address].kv_events
        return Server(
            name=address.name,
            host=address.host,
            port=address.port,
            tls=address.tls,
            base_path=address.base_path.encode("ascii"),
            host_header=address.host_header,
            api_key=key,
            timeouts=attrs.evolve(timeouts, **own_timeouts) if own_timeouts else timeouts,
            socket=address.socket,
            tls_options=tls[address],
            kv_events=events.get("kv_events"),
            kv_events_replay=events.get("kv_events_replay"),
            **own_limits,
        )

    return Fleet(
        default=server(default, servers.api_key) if default else None,
        models=tuple(
            ModelEntry(
                model_name=each.entry.model_name,
                upstream_model=each.entry.litellm_params.model,
                server=server(each.address, each.key),
                weight=each.entry.litellm_params.weight,
                prices=each.entry.prices,
                discovery=each.entry.litellm_params.discovery,
                order=each.entry.litellm_params.order,
                rpm=each.entry.litellm_params.rpm,
                tpm=each.entry.litellm_params.tpm,
                strategy=strategies.get(each.entry.model_name),
                model_id=model_id,
                description=each.described.text,
                log_bodies=each.entry.model_info.log_bodies,
            )
            for each, model_id in zip(placed, _ids(placed, ids), strict=True)
        ),
    )


def _ids(placed: Sequence[_Placed], ids: ModelIds) -> Iterator[str]:
    """Yield the id of each entry: its own, or one that follows from what it serves and is the same at each start."""
    taken: set[str] = set()
    for each in placed:
        found, number = each.described.own_id, 0
        while not found or found in taken:
            what = (each.entry.model_name, each.address.url, each.entry.litellm_params.model, str(number))
            found, number = ids.of(*what), number + 1
        taken.add(found)
        yield found


def _check_wildcards(entry: Entry, params: Place) -> None:
    """Refuse a server's name with more wildcards than callers' names fill in."""
    own, server = entry.model_name.count(WILDCARD), entry.litellm_params.model.count(WILDCARD)
    if server <= own:
        return
    if own == 0:
        params.key("model").refuse(
            "has a wildcard, and model_name has none (write the server's name of the model, or a * in model_name)"
        )
    else:
        params.key("model").refuse(f"has {server} wildcards, and model_name has {own} (it fills in no more)")


def _check_discovery(discovery: str | None, address: Address, params: Place) -> None:
    """Refuse what `discovery` cannot resolve."""
    if discovery is None:
        return
    if address.socket or not is_name(address.host):
        params.key("discovery").refuse("finds servers by a name, and api_base has an address (take it out)")
    elif discovery == SRV and not _SERVICE.match(address.host):
        params.key("api_base").refuse(
            "must name a service with discovery: srv (such as http://_http._tcp.vllm.default.svc)"
        )
    elif discovery == SRV and address.port != address.default_port:
        params.key("api_base").refuse("must not have a port with discovery: srv, as DNS gives the ports (take it out)")


def _strategies(placed: Sequence[_Placed]) -> dict[str, str]:
    """Return the strategy of each model_name whose entries name one."""
    found: dict[str, str] = {}
    for each in placed:
        own = each.entry.model_info.routing_strategy
        if own is not None and found.setdefault(each.entry.model_name, own) != own:
            each.place.key("model_info").key("routing_strategy").refuse(
                f"differs from another entry's of the same model_name: {found[each.entry.model_name]}"
            )
    return found


def _longest_timeouts(placed: Sequence[_Placed]) -> dict[tuple[Address, Secret | None], float]:
    """Return the total timeout of each server whose entries set one; if they differ, the longest."""
    longest: dict[tuple[Address, Secret | None], float] = {}
    for each in placed:
        timeout = each.entry.litellm_params.timeout
        if timeout is None:
            continue
        known = longest.setdefault((each.address, each.key), timeout)
        if timeout != known:
            longest[each.address, each.key] = max(known, timeout)
            each.place.key("litellm_params").key("timeout").warn(
                "differs from another entry's of the same server: the longest is used for both"
            )
    return longest


def _smallest_limits(placed: Sequence[_Placed]) -> dict[Address, int]:
    """Return the limit of each address whose entries set one; if they differ, the smallest."""
    smallest: dict[Address, int] = {}
    for each in placed:
        limit = each.entry.litellm_params.max_parallel_requests
        if limit is None:
            continue
        known = smallest.setdefault(each.address, limit)
        if limit != known:
            smallest[each.address] = min(known, limit)
            each.place.key("litellm_params").key("max_parallel_requests").warn(
                "differs from another entry's of the same server: the smallest is used for both"
            )
    return smallest


def _tls_of(placed: Sequence[_Placed], servers: ServerSettings, root: Place) -> dict[Address, ServerTls]:
    """Return how TLS is spoken to each address."""
    entries: dict[Address, list[tuple[Place, TlsParams]]] = {}
    for each in placed:
        params = each.entry.litellm_params.tls
        entries.setdefault(each.address, []).append((each.place.key("litellm_params"), params))
    if servers.api_base is not None:
        entries.setdefault(servers.api_base, [])
    usual = TlsParams(verify=servers.ssl_verify, certificate=servers.ssl_certificate)
    nothing = Override(root.at("passthrough.servers"), {}, {}, TlsParams(), {})
    found = {}
    for address, named in entries.items():
        own = servers.servers.get(address, nothing)
        found[address] = resolve_tls(address.tls, address.name, named, (own.place, own.tls), usual)
    return found


def _refuse_two_prices(placed: Sequence[_Placed], default: PriceList) -> None:
    """Refuse entries that nothing but their prices tells apart: no request says which of them it is for."""
    first: dict[tuple[str, Address, str], _Placed] = {}
    for each in placed:
        same = first.setdefault((each.entry.model_name, each.address, each.entry.litellm_params.model), each)
        if same is not each and each.entry.prices.or_else(default) != same.entry.prices.or_else(default):
            each.place.key("litellm_params").refuse(
                f"has other prices than {same.place.path}, which is the same model of the same server by the same "
                "model_name (give both the same prices, take one out, or change its model_name)"
            )
        elif same is not each:
            each.place.key("litellm_params").warn(
                f"is the same model of the same server as {same.place.path} (was another api_base meant?)"
            )


def _refuse_strangers(named: Mapping[Address, Override], used: Sequence[Address]) -> None:
    known = {address.url: address for address in used}
    for address, override in named.items():
        if address not in used:
            close = nearest(address.url, known, cutoff=0.6)
            override.place.refuse(
                "is the api_base of no server here (write it as model_list does)"
                + (f"; did you mean '{close}'?" if close else "")
            )
