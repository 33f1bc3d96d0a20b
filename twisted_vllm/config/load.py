"""Loading: the command line over the file over the environment, and every problem at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from twisted_vllm.config import environment
from twisted_vllm.config.address import api_base
from twisted_vllm.config.database import database_url
from twisted_vllm.config.document import read
from twisted_vllm.config.listen import DEFAULT_LISTEN, endpoint, is_loopback
from twisted_vllm.config.litellm import OTHER_SECTIONS, general_settings, litellm_settings, router_settings
from twisted_vllm.config.master_key import master_key as master_key_checker
from twisted_vllm.config.models import Row, rows
from twisted_vllm.config.passthrough import passthrough
from twisted_vllm.config.place import EnvironmentText, Place, Report
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.redis import redis_url
from twisted_vllm.config.servers import Fleet, assemble
from twisted_vllm.config.settings import Limits, Settings, Timeouts
from twisted_vllm.config.shape import Checker, Section, secret

T = TypeVar("T")

DEFAULT_DATABASE_URL = "sqlite:///twisted_vllm.sqlite3"

#: how the arguments of the command line are called in messages
_LISTEN_OPTION = "--listen"


def _seen(value: object, place: Place) -> None:
    """Take a section that was read before the others."""


document: Section[dict[str, Any]] = Section(
    dict,
    {
        "model_list": rows,
        "general_settings": general_settings,
        "litellm_settings": litellm_settings,
        "router_settings": router_settings,
        environment.BLOCK: _seen,
        "passthrough": passthrough,
    },
    ignored=OTHER_SECTIONS,
    hints={
        "master_key": "move it to general_settings",
        "database_url": "move it to general_settings",
        "include": "other files are not read: put everything into this one",
        **dict.fromkeys(passthrough.fields, "move it to passthrough"),
    },
)


def load(
    *,
    file: str | None,
    environ: Mapping[str, str],
    listen: Sequence[str] = (),
    default_database_url: str = DEFAULT_DATABASE_URL,
    default_api_base: str | None = None,
) -> Settings:
    """Load everything that the operator decided.

    Args:
        file: the configuration file, if there is one.
        environ: the environment.
        listen: the endpoints of the command line; they replace those of the file.
        default_database_url: the database where none is named.
        default_api_base: the default server where one is needed and none is named.

    Raises:
        ConfigError: something keeps it from being used; it holds all that does.
    """
    written = read(file) if file is not None else {}
    report = Report()
    root = Place("", report, environment.overlay(environ, written.get(environment.BLOCK), report))
    environment.warn_of_misspelt(root.environ, report)

    found = root.attempt(document, written) or {}
    general, own = found.get("general_settings", {}), found.get("passthrough", {})
    master_key = _choose(general, "master_key", master_key_checker, root)
    database = _choose(general, "database_url", database_url, root)
    endpoints = _endpoints(listen, own.get("listen", ()), root)
    allow_anonymous = own.get("allow_anonymous", False)
    if master_key is None and not allow_anonymous:
        _refuse_open_mode(endpoints, root.at(_LISTEN_OPTION if listen else "passthrough.listen"))
    redis = _choose(own, "redis_url", redis_url, root)
    fleet = _fleet(found, own, default_api_base, root)
    if database is None:
        database = root.at("default_database_url").attempt(database_url, default_database_url)

    if report.problems or database is None:
        raise ConfigError(report.problems)
    optional = (
        *("path_aliases", "tenant_routes", "trusted_proxies", "limits", "timeouts"),
        *("drain_delay", "drain_timeout", "revoke_running", "log", "ledger", "end_users", "default_prices"),
        "limits_on_redis_loss",
    )
    return Settings(
        listen=endpoints,
        master_key=master_key,
        allow_anonymous=allow_anonymous,
        database_url=database,
        default_server=fleet.default,
        models=fleet.models,
        redis=redis,
        metrics_are_open=not found.get("litellm_settings", {}).get("require_auth_for_metrics_endpoint", False),
        warnings=report.warnings(),
        **{name: own[name] for name in optional if name in own},
    )


def _choose(section: Mapping[str, Any], setting: str, checker: Checker[T], root: Place) -> T | None:
    """Return a setting of the file, else of the environment."""
    written: T | None = section.get(setting)
    return environment.from_environment(setting, checker, root) if written is None else written


def _endpoints(listen: Sequence[str], written: tuple[str, ...], root: Place) -> tuple[str, ...]:
    option = root.at(_LISTEN_OPTION)
    chosen = [option.attempt(endpoint, EnvironmentText(value)) for value in listen]
    return tuple(value for value in chosen if value is not None) or written or (DEFAULT_LISTEN,)


def _refuse_open_mode(endpoints: Sequence[str], place: Place) -> None:
    """Refuse to be open to others than this machine, unless the master key or the endpoint was refused already."""
    here = ("master_key", "passthrough.allow_anonymous", place.path)
    if place.report.refused_below("general_settings", *environment.VARIABLES["master_key"], *here):
        return
    if not all(is_loopback(value) for value in endpoints):
        place.refuse(
            "is open to other machines while there is no master key, so that anybody could use the servers "
            "(set LITELLM_MASTER_KEY or general_settings.master_key; or, if that is meant, write allow_anonymous: true "
            "below passthrough)"
        )


def _fleet(found: Mapping[str, Any], own: Mapping[str, Any], default_api_base: str | None, root: Place) -> Fleet:
    table: tuple[Row, ...] = found.get("model_list", ())
    base = _choose(own, "api_base", api_base, root)
    key = _choose(own, "api_key", secret, root)
    bases_refused = root.report.refused_below("passthrough.api_base", *environment.VARIABLES["api_base"])
    if bases_refused:
        # What lacks an api_base lacks the refused one: one problem is enough.
        table = tuple(row for row in table if row.api_base)
    elif base is None and default_api_base is not None and not (table and all(row.api_base for row in table)):
        base = root.at("default_api_base").attempt(api_base, default_api_base)
    complete = not (bases_refused or root.report.refused_below("model_list"))
    if complete and base is None and not table:
        root.refuse(
            "no vLLM server is configured (set HOSTED_VLLM_API_BASE, or write model_list in the file; "
            "to try without one: --quickstart)"
        )
    if key is not None and base is None:
        root.at("HOSTED_VLLM_API_KEY").warn(
            "is not used, as it goes to the default server alone, and there is none (set HOSTED_VLLM_API_BASE, or "
            "write api_key: os.environ/HOSTED_VLLM_API_KEY below litellm_params)"
        )
    overrides = own.get("servers", {}) if complete else {}
    return assemble(table, base, key, own.get("timeouts", Timeouts()), own.get("limits", Limits()), overrides)
