"""Who a caller is to the admin API: LiteLLM's roles of users, and keys that administer."""

from __future__ import annotations

from enum import Enum

from twisted_vllm.auth.records import PROXY_ADMIN, Principal

#: LiteLLM's other roles of users
PROXY_ADMIN_VIEWER = "proxy_admin_viewer"
INTERNAL_USER = "internal_user"
INTERNAL_USER_VIEWER = "internal_user_viewer"

#: the roles that a user may have; the first is the default
ROLES = (INTERNAL_USER, INTERNAL_USER_VIEWER, PROXY_ADMIN, PROXY_ADMIN_VIEWER)


class Standing(Enum):
    """Who a caller is. Whether its user administers a team is not decided here: it depends on the team."""

    #: the master key, or anybody where there is none
    MASTER = "master key"
    #: a key of a user who administers the gateway
    PROXY_ADMIN = PROXY_ADMIN
    #: a key whose ``allowed_routes`` hold ``management``
    MANAGER = "management key"
    PROXY_ADMIN_VIEWER = PROXY_ADMIN_VIEWER
    INTERNAL_USER = INTERNAL_USER
    INTERNAL_USER_VIEWER = INTERNAL_USER_VIEWER
    #: a key without a user
    KEY = "key without a user"


def standing_of(principal: Principal) -> Standing:
    """Return who a caller is.

    ``allowed_routes`` narrow a role: a key of an administrator that may only call models does not administer.
    """
    if principal.is_administrator:
        return Standing.MASTER
    if principal.may_administer:
        return Standing.PROXY_ADMIN if principal.role == PROXY_ADMIN else Standing.MANAGER
    if not principal.role:
        return Standing.KEY
    if principal.role == INTERNAL_USER:
        return Standing.INTERNAL_USER
    if principal.role == PROXY_ADMIN_VIEWER and not principal.allowed_routes:
        return Standing.PROXY_ADMIN_VIEWER
    # a role that is not known grants the least
    return Standing.INTERNAL_USER_VIEWER


def has_master_rights(principal: Principal) -> bool:
    """Return whether a caller may do what the master key may in the admin API."""
    return standing_of(principal) in (Standing.MASTER, Standing.PROXY_ADMIN)


def reads_everything(principal: Principal) -> bool:
    """Return whether a caller may read everything that the admin API shows."""
    return principal.may_administer or standing_of(principal) is Standing.PROXY_ADMIN_VIEWER
