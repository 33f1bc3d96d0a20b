"""Who may call which route of the admin API: one table, which every route obeys before its body is read.

A route declares an `Access`. `EXTENTS` says what it means for each `Standing`: the route for everything, for what is
the caller's own, or not at all. What is the caller's own, `twisted_vllm.admin.scope` decides in the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from twisted_vllm.auth.policy import parse_rule
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.roles import Standing, standing_of
from twisted_vllm.errors import RouteNotAllowed


class Access(Enum):
    """Who may call a route."""

    #: anyone, without a credential
    OPEN = "open"
    #: every valid key may read; it sees what is its own, and administrators and their viewers see everything
    ANY_KEY = "any key"
    #: reads everything: administrators and their viewers
    READER = "reader"
    #: as READER, and keys whose ``allowed_routes`` name the route
    NAMED = "named"
    #: changes: administrators everything, users and team administrators what is their own
    SELF_SERVICE = "self service"
    #: changes everything: the master key, proxy_admin, and management keys
    ADMINISTRATOR = "administrator"
    #: the master key and proxy_admin
    MASTER = "master"


class Extent(Enum):
    """How much of a route a caller may use."""

    ALL = "all"
    OWN = "own"
    NONE = "refused"


def _row(all: tuple[Standing, ...], own: tuple[Standing, ...] = ()) -> Mapping[Standing, Extent]:
    return {each: Extent.ALL if each in all else Extent.OWN if each in own else Extent.NONE for each in Standing}


_MASTERS = (Standing.MASTER, Standing.PROXY_ADMIN)
_ADMINISTRATORS = (*_MASTERS, Standing.MANAGER)
_READERS = (*_ADMINISTRATORS, Standing.PROXY_ADMIN_VIEWER)

#: what each kind of access means for each caller
EXTENTS: Mapping[Access, Mapping[Standing, Extent]] = {
    Access.OPEN: _row(tuple(Standing)),
    Access.ANY_KEY: _row(_READERS, tuple(Standing)),
    Access.READER: _row(_READERS),
    Access.NAMED: _row(_READERS),
    Access.SELF_SERVICE: _row(_ADMINISTRATORS, (Standing.INTERNAL_USER,)),
    Access.ADMINISTRATOR: _row(_ADMINISTRATORS),
    Access.MASTER: _row(_MASTERS),
}

_ADMINISTRATOR_WORDS = (
    "the master key, keys of users with the role proxy_admin, and keys whose allowed_routes hold `management`"
)
_READER_WORDS = "the master key, keys of users with the role proxy_admin or proxy_admin_viewer"
_ONLY_READS = "The role of this key's user only reads. The role internal_user changes its own keys"
_REFUSALS: Mapping[Access, str] = {
    Access.READER: f"Only {_READER_WORDS}, and keys whose allowed_routes hold `management` may call this route.",
    Access.NAMED: f"Only {_READER_WORDS}, and keys whose allowed_routes hold `management` or name it "
    "may call this route.",
    Access.ADMINISTRATOR: f"Only {_ADMINISTRATOR_WORDS} may call this route.",
    Access.MASTER: "Only the master key may call this route, and keys of users with the role proxy_admin.",
}
_SELF_SERVICE: Mapping[Standing, str] = {
    Standing.KEY: "This key belongs to no user, so it changes nothing. Keys of users with the role internal_user do",
    Standing.PROXY_ADMIN_VIEWER: _ONLY_READS,
    Standing.INTERNAL_USER_VIEWER: _ONLY_READS,
}


def extent_of(access: Access, principal: Principal, path: str, self_service: bool = True) -> Extent:
    """Return how much of a route a caller may use.

    Args:
        access: what the route declares.
        principal: the caller.
        path: the route's path, without parameters.
        self_service: whether people may serve themselves here.
    """
    extent = EXTENTS[access][standing_of(principal)]
    if access is Access.NAMED and path in principal.allowed_routes:
        return Extent.ALL
    if extent is Extent.OWN and access is Access.SELF_SERVICE and not (self_service and _names(principal, path)):
        return Extent.NONE
    return extent


def check_access(access: Access, principal: Principal, path: str, self_service: bool = True) -> Extent:
    """Check that a caller may use a route, and return how much of it.

    Args:
        access: what the route declares.
        principal: the caller.
        path: the route's path, without parameters.
        self_service: whether people may serve themselves here.

    Raises:
        RouteNotAllowed: it may not; the message says who may.
    """
    extent = extent_of(access, principal, path, self_service)
    if extent is Extent.NONE:
        raise RouteNotAllowed(_refusal(access, principal, path, self_service))
    return extent


def _names(principal: Principal, path: str) -> bool:
    """Return whether a key's ``allowed_routes`` let it change things at a path."""
    return not principal.allowed_routes or any(parse_rule(rule).names(path) for rule in principal.allowed_routes)


def _refusal(access: Access, principal: Principal, path: str, self_service: bool) -> str:
    if access is not Access.SELF_SERVICE:
        return _REFUSALS[access]
    if not self_service:
        return f"The operator left this to administrators (passthrough.self_service.enabled): {_ADMINISTRATOR_WORDS}."
    why = _SELF_SERVICE.get(standing_of(principal))
    if why is None:
        why = f"The allowed_routes of this key do not name {path}. Use a key of the same user without allowed_routes"
    return f"{why}, or ask an administrator: {_ADMINISTRATOR_WORDS}."
