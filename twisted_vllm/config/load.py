"""Loads the settings: the command line over the file over the environment. Reports all problems at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import attrs

from twisted_vllm.config import alerting, litellm, otlp_metrics, otlp_sinks, restricting
from twisted_vllm.config.callbacks import NO_CALLBACKS, Callbacks, callback_settings
from twisted_vllm.config.checks import ANY_ORIGIN, Checker, checker, optional
from twisted_vllm.config.console import ConsoleSettings
from twisted_vllm.config.declaration import (
    OWN_BLOCK,
    Inherited,
    Items,
    Section,
    Setting,
    Unknown,
    section,
    setting,
    settings_of,
)
from twisted_vllm.config.includes import read_with_includes
from twisted_vllm.config.jwt import JwtClaims, JwtSettings, check_roles
from twisted_vllm.config.listen import DEFAULT_LISTEN, endpoint, is_loopback
from twisted_vllm.config.log_bodies import DEFAULT_LOG_BODIES, FULL
from twisted_vllm.config.model_ids import ModelIds, lasting_secret
from twisted_vllm.config.name_patterns import NamePattern, is_pattern
from twisted_vllm.config.origins import FileLines
from twisted_vllm.config.problems import ConfigError, EnvironmentText, Place, Report, shown, suggestion
from twisted_vllm.config.providers import PROVIDER
from twisted_vllm.config.restricting import asks_for_something
from twisted_vllm.config.server_tls import TlsParams
from twisted_vllm.config.servers import ENTRY_SECTION, SECOND_ENTRY, Fleet, Row, ServerSettings, assemble, rows
from twisted_vllm.config.settings import (
    DEFAULT_DATABASE_URL,
    LedgerSettings,
    Limits,
    PriceList,
    RoutingSettings,
    Settings,
    Timeouts,
)
from twisted_vllm.config.sinks import DATABASE, REQUESTS, SPEND_LOGS, SinkSettings
from twisted_vllm.config.sources import BLOCK, from_environment, overlay, variable_of, warn_of_misspelt
from twisted_vllm.config.tracing import TracingSettings, with_destinations
from twisted_vllm.config.urls import api_base, database_url
from twisted_vllm.config.written import origins_of

#: the names of command-line arguments in messages
_LISTEN_OPTION = "--listen"

#: LiteLLM's setting that takes the client's address from X-Forwarded-For
_FORWARDED = "use_x_forwarded_for"

#: LiteLLM's setting that keeps prompts
_STORE_PROMPTS = "general_settings.store_prompts_in_spend_logs"

#: every setting in a block of the file, by attribute
_DECLARED = {
    each.attribute: each for holder in (ServerSettings, RoutingSettings, Settings) for each in settings_of(holder)
}

#: router settings that LiteLLM also takes below ``litellm_settings``
_TWICE = tuple(
    attrs.evolve(
        each,
        block="litellm_settings",
        check=optional(each.check, each.path),
        default=Inherited(each.path),
        doc=f"As {each.path}, which wins.",
    )
    for each in settings_of(RoutingSettings)
    if each.name != "routing_strategy" and isinstance(each.check, Checker)
)

#: without these the gateway is open, or loses its keys: a misspelling of them is an error, not a warning
_GENERAL_ONLY = dict.fromkeys(("master_key", "database_url"), "move it to general_settings")
#: LiteLLM's settings of routing, which are often written one block too high or too low
_ROUTER_ONLY = {
    # "timeout" is a slip for other settings as well
    each.name: "move it to router_settings"
    for each in settings_of(RoutingSettings)
    if each.name != "timeout"
}


def _block(
    name: str,
    *,
    ignored: frozenset[str] = frozenset(),
    restrictions: restricting.Restrictions = restricting.NONE,
    hints: Mapping[str, str] | None = None,
    unknown: Unknown = Unknown.WARN,
) -> Section[dict[str, Any]]:
    """Return the checker of a top-level mapping; it returns the values by attribute."""
    held = tuple(_nullable(each) for each in (*_DECLARED.values(), *_TWICE) if each.block == name)
    return Section(dict, held, ignored, restrictions, hints or {}, unknown)


def _nullable(each: Setting) -> Setting:
    """Allow null in the file, even if the value may not be None: it defers to the environment, or to the default.

    In router_settings null is LiteLLM's own default.
    """
    may_be_null = each.environment or each.block == "router_settings"
    if not may_be_null or not isinstance(each.check, Checker) or each.check.null:
        return each
    return attrs.evolve(each, check=optional(each.check, "as if left out"))


@checker("mapping of names to text")
def _read_before(value: object, place: Place) -> dict[str, str]:
    """Return the variables, which `overlay` checks before the rest of the file is read."""
    return {}


@attrs.frozen
class Document:
    """The whole file: each block as its settings by attribute."""

    environment_variables: dict[str, str] = setting(
        {}, _read_before, "Variables laid over the environment before anything else is read.", block="", name=BLOCK
    )
    model_list: tuple[Row, ...] = setting(
        (),
        rows,
        "The models by the names that callers use. Entries with the same model_name share its requests. Entries of "
        "other providers are skipped with a warning.",
        block="",
        items=Items(ENTRY_SECTION, "[]", more=SECOND_ENTRY),
    )
    general_settings: dict[str, Any] = setting(
        {},
        _block(
            "general_settings",
            ignored=litellm.GENERAL_SETTINGS,
            restrictions=restricting.GENERAL_SETTINGS,
            hints=_ROUTER_ONLY,
        ),
        "LiteLLM's general settings. Those that are not listed here cause a warning, or an error if they restrict "
        "somebody.",
        block="",
    )
    litellm_settings: dict[str, Any] = setting(
        {},
        _block(
            "litellm_settings",
            ignored=litellm.LITELLM_SETTINGS,
            restrictions=restricting.LITELLM_SETTINGS,
            hints=_GENERAL_ONLY,
        ),
        "LiteLLM's own settings. Those that are not listed here cause a warning, or an error if they restrict "
        "somebody.",
        block="",
    )
    router_settings: dict[str, Any] = setting(
        {},
        _block(
            "router_settings",
            ignored=litellm.ROUTER_SETTINGS,
            restrictions=restricting.ROUTER_SETTINGS,
            hints=_GENERAL_ONLY,
        ),
        "Which server gets a request, and what happens if it fails. LiteLLM's router settings that are not listed here "
        "cause a warning, or an error if they restrict somebody.",
        block="",
    )
    callback_settings: Mapping[str, object] = setting(
        {},
        callback_settings,
        "LiteLLM's settings of callbacks, by their names: callback_type: generic_api with endpoint, headers, "
        "event_types, log_format and timeout.",
        block="",
    )
    passthrough: dict[str, Any] = setting(
        {},
        _block(
            OWN_BLOCK,
            hints={**_GENERAL_ONLY, **_ROUTER_ONLY, "model_list": "move it to the top of the file"},
            unknown=Unknown.REFUSE,
        ),
        "The settings that only this gateway has.",
        block="",
    )


#: the checker of the file, from which its description is generated as well
DOCUMENT = section(
    Document,
    ignored=litellm.BLOCKS,
    restricting=restricting.BLOCKS,
    hints={
        **_GENERAL_ONLY,
        **_ROUTER_ONLY,
        **{each.name: f"move it to {OWN_BLOCK}" for each in _DECLARED.values() if each.block == OWN_BLOCK},
    },
    unknown=Unknown.WARN,
)


def load(
    *,
    file: str | None,
    environ: Mapping[str, str],
    listen: Sequence[str] = (),
    default_database_url: str = DEFAULT_DATABASE_URL,
    default_api_base: str | None = None,
) -> Settings:
    """Load the settings.

    Args:
        file: the configuration file, if there is one.
        environ: the environment.
        listen: the endpoints of the command line; they replace those of the file.
        default_database_url: the database if none is configured.
        default_api_base: the default server if one is needed and none is configured.

    Raises:
        ConfigError: the configuration is not valid; it contains all problems.
    """
    lines = FileLines()
    written = read_with_includes(file, lines) if file is not None else {}
    report = Report()
    root = Place("", report, overlay(environ, written.get(BLOCK), report))
    warn_of_misspelt(root.environ, variables(), report)

    document = root.attempt(DOCUMENT, written) or Document()
    twice = {each.attribute for each in _TWICE}
    found = {
        **document.general_settings,
        **{name: value for name, value in document.litellm_settings.items() if value is not None or name not in twice},
        **{name: value for name, value in document.router_settings.items() if value is not None},
        **document.passthrough,
    }
    taken: dict[str, str] = {}
    for each in variables():
        if found.get(each.attribute) is None:
            found[each.attribute] = from_environment(each, root)
            if (name := variable_of(each, root.environ)) is not None:
                taken[each.path] = name
    found["listen"] = _endpoints(listen, found.get("listen", ()), root)
    if found["master_key"] is None and not found.get("allow_anonymous"):
        _refuse_open_mode(found["listen"], root.at(_LISTEN_OPTION if listen else _DECLARED["listen"].path))
    if found["master_key"] is None and ANY_ORIGIN in (found.get("allowed_origins") or ()):
        root.at(_DECLARED["allowed_origins"].path).refuse(
            "lets every web page use the servers while there is no master key (set LITELLM_MASTER_KEY or "
            "general_settings.master_key, or name the origins)"
        )
    if found.get("allowed_ips") and not found.get("trusted_proxies"):
        _refuse_untold_addresses(written.get("general_settings"), root)
    if found.get("enable_jwt_auth"):
        _check_jwt(found, root)
    _check_console(found, root)
    alerting.resolve(found, root)
    if found.get("limits") is not None:
        _warn_of_limits(found["limits"], root)
    callbacks = _callbacks(found, document.callback_settings, root)
    callbacks = _kept_prompts(found, callbacks, written.get(OWN_BLOCK), root)
    tracing = found.get("tracing") or TracingSettings()
    found["otlp_metrics"] = otlp_metrics.resolved(
        found.get("otlp_metrics") or otlp_metrics.OtlpMetricsSettings(), tracing, root
    )
    found["tracing"] = with_destinations(tracing, callbacks.traces, root)
    _check_sink_names(found.get("sinks", ()), callbacks, root)
    beside = "" if file is None else str(Path(file).absolute().parent)
    found["sinks"] = otlp_sinks.with_environment(_importing(found.get("sinks", ()), beside), tracing, root)
    callbacks = attrs.evolve(callbacks, sinks=_importing(callbacks.sinks, beside))
    fleet = _fleet(document.model_list, found, default_api_base, root, listed=bool(written.get("model_list")))
    routing = RoutingSettings(**_values(RoutingSettings, found))
    _warn_of_unknown_models(routing, fleet, document.router_settings, root)
    if found["database_url"] is None:
        found["database_url"] = root.at("default_database_url").attempt(database_url, default_database_url)

    if report.problems:
        raise ConfigError(report.problems, report.warnings())
    settings = Settings(
        **_values(Settings, found),
        routing=routing,
        default_server=fleet.default,
        models=fleet.models,
        callbacks=callbacks,
        usual_tls=TlsParams(verify=found.get("ssl_verify"), certificate=found.get("ssl_certificate")),
        warnings=report.warnings(),
        origins=origins_of(written, lines, root.environ, taken, _placed(document.model_list, fleet)),
    )
    _check_spools(settings, root)
    if report.problems:
        raise ConfigError(report.problems, report.warnings())
    return settings


def _placed(table: Sequence[Row], fleet: Fleet) -> Iterable[tuple[Place, str]]:
    """Return the place of each entry of the list, and its id."""
    return zip((row.place for row in table), (entry.model_id for entry in fleet.models), strict=True)


def _callbacks(found: Mapping[str, Any], own: Mapping[str, object], root: Place) -> Callbacks:
    """Return what LiteLLM's callbacks ask for."""
    both = found.get("litellm_callbacks", ())
    successes, failures = found.get("success_callback", ()), found.get("failure_callback", ())
    if not (both or successes or failures):
        return NO_CALLBACKS
    # few files name one
    from twisted_vllm.config.callback_reading import read_callbacks

    return read_callbacks(both, successes, failures, own, found.get("s3_callback_params", {}), root)


def _kept_prompts(found: dict[str, Any], callbacks: Callbacks, written: object, root: Place) -> Callbacks:
    """Return the callbacks with the sink that ``store_prompts_in_spend_logs`` asks for, and have prompts kept for it.

    LiteLLM gives prompts and answers to all its callbacks as well.
    """
    own = [index for index, sink in enumerate(found.get("sinks", ())) if sink.type == DATABASE]
    for index in own[1:]:
        root.at(_DECLARED["sinks"].path).item(index).key("type").refuse("stands twice: one database is enough")
    stores = bool(found.get("store_prompts_in_spend_logs"))
    if not found.get("ledger", LedgerSettings()).enabled and (own or stores):
        place = root.at(_DECLARED["sinks"].path).item(own[0]).key("type") if own else root.at(_STORE_PROMPTS)
        place.refuse("keeps prompts by the rows of the ledger, which is off (set passthrough.ledger.enabled: true)")
    if not stores:
        return callbacks
    bodies = found.get("log_bodies") or DEFAULT_LOG_BODIES
    in_file = written.get("log_bodies") if isinstance(written, dict) else None
    if not (isinstance(in_file, dict) and "mode" in in_file):
        found["log_bodies"] = attrs.evolve(bodies, mode=FULL)
        others = [sink.name for sink in (*found.get("sinks", ()), *callbacks.sinks) if sink.gets_contents]
        if others:
            root.at(_STORE_PROMPTS).warn(
                f"prompts and answers go to the sinks {', '.join(others)} as well, as in LiteLLM (write "
                "passthrough.log_bodies.mode, or model_info.log_bodies of models, to keep less)"
            )
    if own:
        return callbacks
    sink = SinkSettings(name=SPEND_LOGS, type=DATABASE, events=(REQUESTS,))
    return attrs.evolve(callbacks, sinks=(*callbacks.sinks, sink))


def _check_sink_names(written: Iterable[SinkSettings], callbacks: Callbacks, root: Place) -> None:
    names = {sink.name for sink in callbacks.sinks}
    for index, sink in enumerate(written):
        if sink.name in names:
            root.at(_DECLARED["sinks"].path).item(index).key("name").refuse(
                "is the name of a callback's sink as well (give it another one, or take the callback out)"
                if sink.name != SPEND_LOGS
                else "is the name of the sink of general_settings.store_prompts_in_spend_logs (give it another one)"
            )


def _check_spools(settings: Settings, root: Place) -> None:
    """Refuse spools that share a directory: after a restart one would take over what the other left."""
    owners = {os.path.normpath(settings.spool_directory): "the ledger"}
    for index, sink in enumerate(settings.all_sinks):
        if not sink.spool.enabled:
            continue
        directory = os.path.normpath(sink.spool_path)
        owner = owners.setdefault(directory, f"the sink {sink.name}")
        if owner != f"the sink {sink.name}":
            place = root.at(_DECLARED["sinks"].path).item(index).key("spool").key("directory")
            place.refuse(f"is the directory of {owner} as well (give each spool one of its own)")


def _importing(sinks: Iterable[SinkSettings], directory: str) -> tuple[SinkSettings, ...]:
    """Return sinks whose Python is looked for in a directory first."""
    return tuple(attrs.evolve(sink, import_from=directory) if sink.object is not None else sink for sink in sinks)


def variables() -> list[Setting]:
    """Return the settings that the environment may set."""
    return [each for each in (*settings_of(Settings), *settings_of(ServerSettings)) if each.environment]


def variables_of(attribute: str) -> tuple[str, ...]:
    """Return the environment variables of a setting, by attribute; the first that is set wins."""
    return _DECLARED[attribute].environment


def _values(holder: type[attrs.AttrsInstance], found: Mapping[str, Any]) -> dict[str, Any]:
    return {each.attribute: found[each.attribute] for each in settings_of(holder) if each.attribute in found}


def _endpoints(listen: Sequence[str], written: tuple[str, ...], root: Place) -> tuple[str, ...]:
    option = root.at(_LISTEN_OPTION)
    chosen = [option.attempt(endpoint, EnvironmentText(value)) for value in listen]
    return tuple(value for value in chosen if value is not None) or written or (DEFAULT_LISTEN,)


def _refuse_open_mode(endpoints: Sequence[str], place: Place) -> None:
    """Refuse open mode on addresses beyond this machine, unless the master key or the endpoint was refused already."""
    here = ("master_key", _DECLARED["allow_anonymous"].path, place.path)
    if place.report.refused_below("general_settings", *variables_of("master_key"), *here):
        return
    if not all(is_loopback(value) for value in endpoints):
        place.refuse(
            "is open to other machines while there is no master key, so that anybody could use the servers "
            "(set LITELLM_MASTER_KEY or general_settings.master_key; or, if that is meant, write allow_anonymous: true "
            "below passthrough)"
        )


def _refuse_untold_addresses(written: object, root: Place) -> None:
    """Refuse ``allowed_ips`` where LiteLLM would read the client's address from a header that nobody may send here."""
    if isinstance(written, dict) and asks_for_something(written.get(_FORWARDED)):
        root.at(f"general_settings.{_FORWARDED}").refuse(
            "says that clients come through a proxy, whose address allowed_ips would be compared with (name the proxy "
            "in passthrough.trusted_proxies)"
        )


def _check_jwt(found: Mapping[str, Any], root: Place) -> None:
    """Refuse JWT authentication that would let nobody in, or everybody whom the issuer knows."""
    refused = root.report.refused_below
    keys, audience = _DECLARED["jwt_public_key_url"], _DECLARED["jwt_audience"]
    if not found.get("jwt_public_key_url") and not refused(keys.path, *keys.environment):
        root.at(keys.path).refuse("is missing (enable_jwt_auth needs it; or set JWT_PUBLIC_KEY_URL)")
    if found.get("master_key") is None and not refused("general_settings", *variables_of("master_key")):
        root.at("general_settings.enable_jwt_auth").refuse(
            "checks nobody while there is no master key (set LITELLM_MASTER_KEY or general_settings.master_key)"
        )
    settings = found.get("jwt") or JwtSettings()
    if not found.get("jwt_audience") and not settings.accept_any_audience and not refused(audience.path):
        root.at(audience.path).refuse(
            "is missing: tokens that the issuer made for any other program would be valid here (set JWT_AUDIENCE; or, "
            "if that is meant, write jwt: {accept_any_audience: true} below passthrough)"
        )
    claims = found.get("litellm_jwtauth") or JwtClaims()
    at = root.at("general_settings.litellm_jwtauth")
    check_roles(claims, at)
    if claims.object_id_jwt_field is not None and not claims.role_mappings:
        at.key("object_id_jwt_field").refuse("needs role_mappings, which say whether it is a user or a team")
    if bool(claims.scope_mappings) != claims.enforce_scope_based_access:
        at.refuse("needs scope_mappings and enforce_scope_based_access together, or none of them")
    if claims.user_id_upsert and claims.user_id_jwt_field is None and claims.object_id_jwt_field is None:
        at.key("user_id_upsert").refuse("needs user_id_jwt_field")


def _check_console(found: Mapping[str, Any], root: Place) -> None:
    """Refuse a provider where nobody signs in, as everybody is an administrator."""
    console = found.get("console") or ConsoleSettings()
    refused = root.report.refused_below("general_settings", *variables_of("master_key"))
    if console.oidc.issuer is not None and found.get("master_key") is None and not refused:
        root.at(f"{_DECLARED['console'].path}.oidc").refuse(
            "lets nobody in while there is no master key: then everybody is an administrator (set LITELLM_MASTER_KEY "
            "or general_settings.master_key)"
        )


def _warn_of_limits(limits: Limits, root: Place) -> None:
    """Warn of limits that another limit makes void."""
    at = root.at(_DECLARED["limits"].path)
    if limits.max_held_total_bytes < 2 * limits.max_held_body_bytes:
        at.key("max_held_total_bytes").warn(
            "does not bound the memory of bodies: make it at least twice max_held_body_bytes "
            f"({2 * limits.max_held_body_bytes})"
        )
    if limits.max_held_bytes_per_key is not None and limits.max_held_bytes_per_key > limits.max_held_total_bytes:
        at.key("max_held_bytes_per_key").warn("is more than max_held_total_bytes, so one key may take all of it")
    if limits.max_reports_per_key > limits.max_reports:
        at.key("max_reports_per_key").warn("is more than max_reports, so one key may take all of them")


def _warn_of_unknown_models(routing: RoutingSettings, fleet: Fleet, written: Mapping[str, Any], root: Place) -> None:
    """Warn of names of models that do nothing, unless such a model is added while the gateway runs."""
    known = {entry.model_name for entry in fleet.models}
    aliases = known | routing.model_group_alias.keys()
    patterns = [NamePattern(name) for name in known if is_pattern(name)]

    def is_known(name: str) -> bool:
        return name in known or any(each.match(name) is not None for each in patterns)

    def place(attribute: str) -> Place:
        block = "router_settings" if written.get(attribute) is not None else "litellm_settings"
        return root.at(f"{block}.{attribute}")

    def warn(at: Place, name: str, names: Set[str]) -> None:
        at.warn(f"no entry of model_list is named {shown(name)}{suggestion(name, names)}")

    def look(at: Place, others: Iterable[str]) -> None:
        for each in others:
            # any other name is one for the default server
            if each not in aliases and fleet.default is None and not is_known(each):
                warn(at, each, known)

    for attribute in ("fallbacks", "context_window_fallbacks"):
        for name, others in getattr(routing, attribute).items():
            at = place(attribute).key(name)
            if name == "*" and name not in known:
                place(attribute).warn("* stands for no model: ignored (write default_fallbacks)")
            elif name in routing.model_group_alias and name not in known:
                at.warn("is an alias: ignored (write the name of the model)")
            elif not is_known(name):
                warn(at, name, known)
            look(at, others)
    look(place("default_fallbacks"), routing.default_fallbacks)
    for alias, name in routing.model_group_alias.items():
        at = place("model_group_alias").key(alias)
        if alias in known:
            at.warn("a model of model_list has this name: ignored")
        elif not is_known(name):
            warn(at, name, known)


def _needs_default(table: Sequence[Row]) -> bool:
    return not table or not all(row.entry.litellm_params.api_base for row in table)


def _fleet(
    table: tuple[Row, ...], found: dict[str, Any], default_api_base: str | None, root: Place, *, listed: bool
) -> Fleet:
    servers = ServerSettings(**_values(ServerSettings, found))
    base = _DECLARED["api_base"]
    base_refused = root.report.refused_below(base.path, *base.environment)
    if base_refused:
        # The missing api_base is the refused one: one problem is enough.
        table = tuple(row for row in table if row.entry.litellm_params.api_base)
    elif servers.api_base is None and default_api_base is not None and _needs_default(table):
        servers = attrs.evolve(servers, api_base=root.at("default_api_base").attempt(api_base, default_api_base))
    complete = not (base_refused or root.report.refused_below("model_list"))
    if complete and servers.api_base is None and not table and not found.get("store_model_in_db"):
        root.refuse(
            "no entry of model_list is for a vLLM server, so that nothing would be served (write model: "
            f"{PROVIDER}/NAME and api_base for each model of a vLLM server, or set HOSTED_VLLM_API_BASE)"
            if listed
            else "no vLLM server is configured (set HOSTED_VLLM_API_BASE, or write model_list in the file; "
            "to try without one: --quickstart)"
        )
    if servers.api_key is not None and servers.api_base is None:
        root.at("HOSTED_VLLM_API_KEY").warn(
            "is not used, as it goes to the default server alone, and there is none (set HOSTED_VLLM_API_BASE, or "
            "write api_key: os.environ/HOSTED_VLLM_API_KEY below litellm_params)"
        )
    if not complete:
        servers = attrs.evolve(servers, servers={})
    timeouts = found.get("timeouts", Timeouts())
    if timeouts.total is None and found.get("timeout") is not None:
        timeouts = found["timeouts"] = attrs.evolve(timeouts, total=found["timeout"])
    return assemble(
        table,
        servers,
        timeouts,
        found.get("limits", Limits()),
        found.get("default_prices", PriceList()),
        root,
        ModelIds(lasting_secret(found.get("salt_key"), found.get("master_key"))),
    )
