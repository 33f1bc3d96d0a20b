"""The settings in effect, each with its value, its default and where it was written, without secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import attrs

from twisted_vllm.config.declaration import Inherited, Required, Setting, settings_of, values_of
from twisted_vllm.config.describe import changed_of_servers, url_of
from twisted_vllm.config.load import DOCUMENT
from twisted_vllm.config.origins import DATABASE, DEFAULT, Origin
from twisted_vllm.config.redis_places import RedisCluster, RedisSentinels
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.servers import ServerSettings
from twisted_vllm.config.settings import ModelEntry, Server, Settings
from twisted_vllm.config.urls import RedisServer, ResolverAddress, describe_database

#: what stands in place of a secret
MASK = "***"

#: the most items of a list or mapping, and characters of a text, that are shown
MOST_ITEMS, MOST_TEXT = 200, 1_000

#: user and password of a URL in a text, and the values of its query
_USER_INFO = re.compile(r"(://)[^/?#\s@]*@")
_QUERY = re.compile(r"([?&;][^=&;#\s]*=)[^&;#\s]+")

#: places of the file that mean the same as a setting, and count less
_ALSO = {"passthrough.timeouts.total": ("router_settings.timeout", "litellm_settings.request_timeout")}

#: mappings that other programs' variables fill in
_FILLED_IN = ("passthrough.tracing", "passthrough.otlp_metrics", "passthrough.alerts")


@attrs.frozen
class InForce:
    """A setting in effect.

    Attributes:
        path: its path in the file.
        declared: its declaration.
        value: its value as `shown` returns it.
        default: its default, likewise; None for a required setting.
        differs: whether the value is not the default.
        hidden: whether something of the value is not shown.
        origin: where the value was written.
    """

    path: str
    declared: Setting
    value: Any
    default: Any
    differs: bool
    hidden: bool
    origin: Origin


def settings_in_force(settings: Settings) -> Iterator[InForce]:
    """Yield every setting that is not a mapping of others, in the order of the file; not the entries of the model list.

    Args:
        settings: the settings, as they were loaded.
    """
    order = {each.name: index for index, each in enumerate(DOCUMENT.settings)}
    found = [
        *_document_settings(settings),
        *_server_settings(settings),
        *values_of(settings.routing),
        *values_of(settings),
    ]
    found.sort(key=lambda each: order[each[0].partition(".")[0]])
    for path, declared, value in found:
        yield _in_force(settings, path, declared, value)


def _in_force(settings: Settings, path: str, declared: Setting, value: object) -> InForce:
    default = None if isinstance(declared.default, (Required, Inherited)) else declared.default
    differs = value != default
    origins = settings.origins
    others = [f"litellm_settings.{declared.name}"] if path.startswith("router_settings.") else []
    others += _ALSO.get(path, ())
    filled_in = next((each for each in _FILLED_IN if path.startswith(f"{each}.")), None)
    if differs and filled_in is not None:
        others.append(f"{filled_in}.*")
        # what nobody says has a default that follows from others
        differs = origins.of(path, *others) is not DEFAULT
    show = _SHOWN.get(path) or (lambda each: shown(each, declared.kind))
    return InForce(
        path=path,
        declared=declared,
        value=show(value),
        default=show(default),
        differs=differs,
        hidden=_hides(value),
        origin=origins.of(path, *others),
    )


def _document_settings(settings: Settings) -> Iterator[tuple[str, Setting, object]]:
    """Yield the blocks of the file that hold no settings of their own."""
    values: Mapping[str, object] = {
        # whatever they hold, it may be a secret
        "environment_variables": {name: Secret("") for name in settings.origins.variables},
        "callback_settings": settings.callbacks.sinks or {},
    }
    for each in DOCUMENT.settings:
        if each.name in values:
            yield each.name, each, values[each.name]


def _server_settings(settings: Settings) -> Iterator[tuple[str, Setting, object]]:
    """Yield the settings that became servers."""
    default = settings.default_server
    values: Mapping[str, object] = {
        "api_base": None if default is None else url_of(default),
        "api_key": None if default is None else default.api_key,
        "servers": changed_of_servers(settings),
        "ssl_verify": settings.usual_tls.verify,
        "ssl_certificate": settings.usual_tls.certificate,
    }
    for each in settings_of(ServerSettings):
        yield each.path, each, values[each.attribute]


def _database(value: object) -> object:
    return describe_database(value) if isinstance(value, Secret) else value


#: settings that are shown in a way of their own
_SHOWN: Mapping[str, Callable[[object], object]] = {"general_settings.database_url": _database}


def shown(value: object, kind: str = "") -> Any:
    """Return a value as JSON can hold it, without secrets and of bounded size.

    Args:
        value: a checked value of a setting.
        kind: the kind of its checker. The origin of a secret URL is shown, as ``--check`` shows it.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Secret):
        return _secret_url(value.reveal()) if "URL" in kind else MASK
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        items = list(value.items())
        some = {_text(_name(name)): shown(inner, kind) for name, inner in items[:MOST_ITEMS]}
        return some if len(items) <= MOST_ITEMS else {**some, "…": f"and {len(items) - MOST_ITEMS} more"}
    if isinstance(value, (tuple, list, set, frozenset)):
        ordered: Collection[Any] = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        listed = [shown(each, kind) for each in list(ordered)[:MOST_ITEMS]]
        return listed if len(value) <= MOST_ITEMS else [*listed, f"and {len(value) - MOST_ITEMS} more"]
    if isinstance(value, (RedisServer, RedisSentinels, RedisCluster)):
        return value.name
    if isinstance(value, ResolverAddress):
        return f"[{value.host}]:{value.port}" if ":" in value.host else f"{value.host}:{value.port}"
    if attrs.has(type(value)):
        return _item(value)
    return _text(str(value))


def _item(value: Any) -> Any:
    """Return an item of a list: of its settings those that are not the default, or else all attributes."""
    if settings_of(type(value)):
        differing = {path: (each, own) for path, each, own in values_of(value, "item") if own != each.default}
        return {path.partition(".")[2]: shown(own, each.kind) for path, (each, own) in differing.items()}
    return {each.name: shown(getattr(value, each.name)) for each in attrs.fields(type(value)) if each.init}


def _hides(value: object) -> bool:
    """Return whether a value holds a secret."""
    if isinstance(value, Secret):
        return True
    if isinstance(value, Mapping):
        return any(map(_hides, value.values()))
    if isinstance(value, (tuple, list, set, frozenset)):
        return any(map(_hides, value))
    if isinstance(value, str):
        return _without_credentials(value) != value
    holder: type[Any] = type(value)
    if attrs.has(holder):
        return any(_hides(getattr(value, each.name)) for each in attrs.fields(holder))
    return False


def _name(name: object) -> str:
    url = getattr(name, "url", None)
    return url if isinstance(url, str) else str(name)


def _text(text: str) -> str:
    text = _without_credentials(text)
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…"


def _without_credentials(text: str) -> str:
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\1{MASK}@", text))


def _secret_url(url: str) -> str:
    """Return where a secret URL leads to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return MASK
    if not host or not parts.scheme:
        return MASK
    named = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{named}{f':{port}' if port else ''}/{MASK}"


def origin_of_entry(settings: Settings, entry: ModelEntry) -> Origin:
    """Return where an entry of the model list was written."""
    return settings.origins.models.get(entry.model_id, DATABASE)


def entry_in_force(settings: Settings, entry: ModelEntry) -> Mapping[str, Any]:
    """Return what an entry of the model list says beside its names, and how its server differs from others."""
    server = entry.server
    values: dict[str, Any] = {
        "api_base": url_of(server),
        "api_key": server.api_key,
        **{name: getattr(entry, name) for name in ("weight", "order", "rpm", "tpm", "discovery", "strategy")},
        **entry.prices.named(),
        "log_bodies": entry.log_bodies,
        **_of_server(settings, server),
    }
    return {name: shown(value) for name, value in values.items() if value is not None}


def _of_server(settings: Settings, server: Server) -> Mapping[str, Any]:
    options = {each.name: getattr(server.tls_options, each.name) for each in attrs.fields(type(server.tls_options))}
    found: dict[str, Any] = {name: value for name, value in options.items() if server.tls and value is not None}
    return {**found, **changed_of_servers(settings, [server]).get(url_of(server), {})}
