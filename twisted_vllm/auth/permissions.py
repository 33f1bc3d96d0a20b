"""Tells apart principals for whom a request is decided differently by its head.

Many keys may do the same. What was decided about a route for one of them holds for all.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from twisted_vllm.auth.records import Principal


class Permissions:
    """What principals that may do the same have in common: one object, compared by its identity."""

    __slots__ = ("__weakref__",)


class PermissionClasses:
    """Finds the `Permissions` of principals. A class is forgotten when nobody has it any more."""

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: WeakValueDictionary[tuple[Any, ...], Permissions] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._classes)

    def of(self, principal: Principal) -> Permissions:
        """Return the class of a principal: the same for two to whom `RoutePolicy.check_route`, `FieldPolicies.of`,
        `Admission.authorize` and `outgoing_headers` give the same answers.
        """
        depends_on = (
            principal.kind,
            principal.allowed_routes,
            principal.restricts_models,
            bool(principal.aliases),
            bool(principal.cache_salt),
            principal.counts_tokens,
            principal.counts_models,
            principal.priority,
            principal.granted_headers,
            principal.key_fields,
            principal.team_fields,
        )
        found = self._classes.get(depends_on)
        if found is None:
            found = self._classes[depends_on] = Permissions()
        return found
