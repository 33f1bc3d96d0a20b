"""Which client an address stands for, where clients are counted by address."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

#: bytes of an IPv6 address that name one client: providers assign a /64 to a line
_IPV6_BYTES = 8


def client_of(address: str) -> str | bytes:
    """Return a client's IPv4 address or IPv6 network; other text is returned as it is."""
    if ":" not in address:
        return address
    try:
        found = ip_address(address)
    except ValueError:
        return address
    assert isinstance(found, IPv6Address)
    return found.packed[:_IPV6_BYTES] if found.ipv4_mapped is None else str(found.ipv4_mapped)
