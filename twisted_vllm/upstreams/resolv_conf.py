"""What ``/etc/resolv.conf`` and ``/etc/hosts`` say (resolv.conf(5), hosts(5)). Plain decisions on their text."""

from __future__ import annotations

from ipaddress import ip_address

import attrs

from twisted_vllm.config.urls import ResolverAddress

#: as in glibc: servers that are asked, domains that are searched, and dots at most
MAX_SERVERS, MAX_DOMAINS, MAX_DOTS = 3, 6, 15


@attrs.frozen
class ResolvConf:
    """How names are resolved.

    Attributes:
        servers: the DNS servers, in the order in which they are asked.
        search: the domains that a short name may be in.
        ndots: a name with so many dots is tried as it is before it is tried in the domains.
    """

    servers: tuple[ResolverAddress, ...]
    search: tuple[str, ...] = ()
    ndots: int = 1


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read the text of ``/etc/resolv.conf``; what cannot be read is passed over. Without a server it is this machine.

    Args:
        text: the content of the file.
    """
    servers: list[ResolverAddress] = []
    search: tuple[str, ...] = ()
    ndots = 1
    for line in text.splitlines():
        word, *values = line.split() or [""]
        if word == "nameserver" and values and _is_address(values[0]):
            servers.append(ResolverAddress(values[0]))
        elif word in ("search", "domain"):
            # the last line wins
            search = tuple(value.rstrip(".").lower() for value in values if value.rstrip("."))
        elif word == "options":
            for value in values:
                name, _, number = value.partition(":")
                if name == "ndots" and number.isascii() and number.isdigit():
                    ndots = min(int(number[:3]), MAX_DOTS)
    return ResolvConf(tuple(servers[:MAX_SERVERS]) or (ResolverAddress("127.0.0.1"),), search[:MAX_DOMAINS], ndots)


def candidates(name: str, conf: ResolvConf) -> tuple[str, ...]:
    """Return the full names that a name may stand for, in the order in which they are tried.

    Args:
        name: a name; with a dot at its end it is full.
        conf: how names are resolved.
    """
    if name.endswith("."):
        return (name.rstrip("."),)
    within = tuple(f"{name}.{domain}" for domain in conf.search)
    return (name, *within) if name.count(".") >= conf.ndots else (*within, name)


def addresses_in_hosts(text: str, name: str) -> tuple[str, ...]:
    """Return the addresses of a name in the text of ``/etc/hosts``.

    Args:
        text: the content of the file.
        name: the name, in lower case.
    """
    found: list[str] = []
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if name.rstrip(".") in (each.lower() for each in names) and _is_address(address):
            found.append(address)
    return tuple(dict.fromkeys(found))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
