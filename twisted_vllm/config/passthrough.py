"""The gateway's own settings: the block ``passthrough:``."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import attrs

from twisted_vllm.config.address import Address, api_base
from twisted_vllm.config.header_names import header_name
from twisted_vllm.config.ledger import ledger
from twisted_vllm.config.listen import endpoint
from twisted_vllm.config.place import Place, Rejected
from twisted_vllm.config.prices import price_list
from twisted_vllm.config.problems import suggestion
from twisted_vllm.config.redis import redis_url
from twisted_vllm.config.settings import EndUserSettings, Limits, LogSettings, TenantRoutes, Timeouts
from twisted_vllm.config.shape import (
    Section,
    empty_is_none,
    flag,
    kind,
    list_of,
    one_of,
    optional,
    seconds,
    secret,
    text,
    whole,
)

#: the classes of routes that a rule may name instead of a path
ROUTE_CLASSES = ("inference", "read_only", "privileged")


@attrs.frozen
class Override:
    """What ``passthrough.servers`` says of one server.

    Attributes:
        place: where it stands.
        timeouts: the waiting times that differ for it, by name.
        caps: the caps that differ for it, by name.
    """

    place: Place
    timeouts: Mapping[str, Any]
    caps: Mapping[str, Any]

    def apply(self, timeouts: Timeouts) -> Timeouts:
        """Return these waiting times with what differs for the server."""
        return attrs.evolve(timeouts, **self.timeouts)


def route_rule(value: object, place: Place) -> str:
    """Check for a path, ``/prefix/*`` or the name of a class of routes."""
    found = text(value, place)
    if found in ROUTE_CLASSES:
        return found
    if not found.startswith("/"):
        classes = ", ".join(ROUTE_CLASSES)
        raise Rejected(f"must be a path that begins with / or one of {classes}{suggestion(found, ROUTE_CLASSES)}")
    if " " in found or "?" in found or "#" in found:
        raise Rejected("must be a path alone, without spaces, a query or a fragment")
    if "*" in found.removesuffix("/*"):
        raise Rejected("may have a * only at its end, after a slash (/prefix/*)")
    return found


def network(value: object, place: Place) -> IPv4Network | IPv6Network:
    """Check for an address or a network in CIDR notation."""
    found = text(value, place)
    try:
        loose = ip_network(found, strict=False)
    except ValueError:
        raise Rejected("must be an address or a network (such as 10.0.0.0/8 or fd00::/8)") from None
    try:
        return ip_network(found)
    except ValueError:
        raise Rejected(f"has bits set after its prefix (write {loose})") from None


listen = list_of(endpoint, lone=True)

#: the caps that may differ from server to server
_SERVER_CAPS = {"max_concurrent_requests": optional(whole(1)), "max_queued_requests": whole(0)}

limits = Section(
    Limits,
    {
        **{field.name: whole(1) for field in attrs.fields(Limits)},
        "max_connections": optional(whole(1)),
        "max_failed_authentications": optional(whole(1)),
        **_SERVER_CAPS,
    },
)

#: the waiting times that concern a server; the others concern clients
_SERVER_TIMEOUTS = {
    "connect": seconds(),
    "response_head": optional(seconds()),
    "idle": optional(seconds()),
    "total": optional(seconds()),
    "queue": optional(seconds()),
    "tunnel_idle": optional(seconds()),
}
_CLIENT_TIMEOUTS = {"client_head": seconds(), "client_body": seconds(), "keep_alive": seconds()}

timeouts = Section(Timeouts, {**_SERVER_TIMEOUTS, **_CLIENT_TIMEOUTS, "redis": seconds()})

server_override: Section[dict[str, Any]] = Section(
    dict,
    {
        "timeouts": Section(
            dict,
            _SERVER_TIMEOUTS,
            hints=dict.fromkeys(_CLIENT_TIMEOUTS, "it concerns clients: move it to passthrough.timeouts")
            | {"redis": "it concerns Redis: move it to passthrough.timeouts"},
        ),
        **_SERVER_CAPS,
    },
    hints={"max_connections": "it concerns clients: move it to passthrough.limits"},
)


def servers(value: object, place: Place) -> dict[Address, Override]:
    """Check for a mapping of ``api_base`` to what differs for that server."""
    if value is not None and not isinstance(value, dict):
        raise Rejected(f"must be a mapping of api_base to settings, not {kind(value)}")
    found: dict[Address, Override] = {}
    for index, (base, content) in enumerate((value or {}).items()):
        # The index stands for the name until it is known to be a URL without a password.
        address = place.item(index).attempt(api_base, base)
        if address is None:
            continue
        here = place.at(f"{place.path}.{address.url}")
        if address in found:
            here.refuse("stands twice, in two spellings (keep one)")
        override = here.attempt(server_override, content) or {}
        caps = {name: override[name] for name in _SERVER_CAPS if name in override}
        found[address] = Override(here, override.get("timeouts", {}), caps)
    return found


passthrough: Section[dict[str, Any]] = Section(
    dict,
    {
        "listen": listen,
        "allow_anonymous": flag,
        "api_base": empty_is_none(api_base),
        "api_key": empty_is_none(secret),
        "path_aliases": flag,
        "tenant_routes": Section(TenantRoutes, {"allow": list_of(route_rule), "deny": list_of(route_rule)}),
        "trusted_proxies": list_of(network),
        "limits": limits,
        "timeouts": timeouts,
        "servers": servers,
        "redis_url": empty_is_none(redis_url),
        "limits_on_redis_loss": one_of("local", "refuse"),
        "drain_delay": seconds(zero=True),
        "drain_timeout": seconds(zero=True),
        "revoke_running": flag,
        "ledger": ledger,
        "end_users": Section(EndUserSettings, {"headers": list_of(header_name)}),
        "default_prices": price_list,
        "log": Section(
            LogSettings,
            {
                "format": one_of("auto", "json", "text"),
                "file": optional(text),
                "rotate_bytes": whole(1),
                "keep_files": whole(1),
                "level": one_of("debug", "info", "warn", "error", "critical"),
            },
        ),
    },
    hints={
        "master_key": "move it to general_settings",
        "database_url": "move it to general_settings",
        "model_list": "move it to the top of the file",
    },
)
