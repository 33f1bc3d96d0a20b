"""Authorizes routes and models.

Administrators may do everything. A key with ``allowed_routes`` may call exactly these:
``passthrough.tenant_routes`` neither adds to them nor takes from them. A key without ``allowed_routes`` may call the
inference and read-only classes, plus ``tenant_routes.allow``, minus ``tenant_routes.deny``. Deny wins over allow.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import lru_cache

import attrs

from twisted_vllm.api_routes import (
    ROUTES,
    UNKNOWN,
    ModelPlace,
    PrefixCache,
    Route,
    RouteClass,
    plain_path,
    prefix_without_alias,
    without_alias,
)
from twisted_vllm.auth.records import MANAGEMENT, Principal
from twisted_vllm.config.settings import TenantRoutes
from twisted_vllm.errors import (
    GatewayError,
    InvalidRequest,
    ModelNotAllowed,
    RouteMethodNotAllowed,
    RouteNotAllowed,
    RouteNotFound,
)
from twisted_vllm.mounts import MOUNT, Mounts

#: characters of a caller's text to quote in an error message
CLIP = 100

#: the route groups of LiteLLM that are supported; its ``openai_routes`` include ``/v1/models``
LITELLM_GROUPS = frozenset(("llm_api_routes", "openai_routes"))


# rules may include where the pass-through is mounted
_BELOW_MOUNT = MOUNT.decode() + "/"
# paths at the gateway's root, and how LiteLLM writes those that name a model
_ROOT = Mounts()
_ANY_MODEL = "{model}"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SEPARATOR = re.compile(r"[/\\]")


_OPENS = "the master key may call it, and a key whose allowed_routes names it"
_OPENS_TO_ALL = "the operator can open it to all keys in passthrough.tenant_routes.allow"


@attrs.frozen
class RouteRule:
    """Matches routes by any of its attributes.

    Attributes:
        path: a path of the server.
        prefix: the beginning of the server's paths; it ends with a slash.
        route_class: a class of routes.
    """

    path: str | None = None
    prefix: str | None = None
    route_class: RouteClass | None = None

    def matches(self, route: Route) -> bool:
        """Return whether the rule matches a route. An ambiguous path is matched by its class only."""
        if route.route_class is self.route_class:
            return True
        return route.certain and self.names(route.path)

    def names(self, path: str) -> bool:
        """Return whether the rule matches a path by its name."""
        return path == self.path or (self.prefix is not None and path.startswith(self.prefix))

    def denies(self, route: Route) -> bool:
        """Return whether the rule denies a route. A denied path includes everything below it.

        vLLM serves ``/metrics`` at ``/metrics/anything`` too.
        """
        return self.matches(route) or (self.path is not None and route.path.startswith(self.path + "/"))


def parse_rule(text: str) -> RouteRule:
    """Read one rule of ``allowed_routes`` or ``tenant_routes``.

    Args:
        text: one of these:

            - a class name: ``inference``, ``read_only`` or ``privileged``
            - a group of LiteLLM: ``llm_api_routes`` or ``openai_routes``, which are inference and ``/v1/models``
            - ``management``: the gateway's admin API, and no route of vLLM
            - a path, or ``prefix/*`` for everything below it; with or without ``/vllm`` and ``/v1``, or as it is at the
              gateway's root: ``/openai/v1/responses``, ``/engines/{model}/completions``

    Raises:
        InvalidRequest: it is none of these.
    """
    if text in LITELLM_GROUPS:
        return RouteRule(path="/v1/models", route_class=RouteClass.INFERENCE)
    if text == MANAGEMENT:
        return RouteRule()
    if not text.startswith("/"):
        try:
            return RouteRule(route_class=RouteClass(text))
        except ValueError:
            names = ", ".join([*(each.value for each in RouteClass), MANAGEMENT])
            message = f"{text[:CLIP]!r} is not a route. Write a path, prefix/* or a class name ({names})."
            raise InvalidRequest(message, param="allowed_routes") from None
    path, below = (text[:-1], True) if text.endswith("/*") else (text, False)
    if path.startswith(_BELOW_MOUNT):
        path = path[len(MOUNT) :]
    elif not below:
        path = _without_root(path)
    # A lone surrogate becomes a question mark, which makes the path invalid.
    plain = plain_path(path.encode("utf-8", "replace"))
    if plain is None or "*" in plain:
        message = (
            f"{text[:CLIP]!r} is not a plain path. Write it decoded, without query, empty or dot segments; "
            "the only wildcard is a last /*."
        )
        raise InvalidRequest(message, param="allowed_routes")
    if below:
        return RouteRule(prefix=prefix_without_alias(plain))
    return RouteRule(path=without_alias(plain.encode()).decode())


# LiteLLM's name of a level in the types of its errors
_SHORT = {"organization": "org"}


def _without_root(text: str) -> str:
    """Return the server's path of a rule for a path at the gateway's root."""
    found = _ROOT.find(text.replace(_ANY_MODEL, "model").encode("utf-8", "replace"))
    if found is None:
        return text
    if found.model and _ANY_MODEL not in text:
        raise InvalidRequest(
            f"{text[:CLIP]!r} names one model. A rule is for a route: write {_ANY_MODEL} in its place, and the model "
            "in models.",
            param="allowed_routes",
        )
    return found.path.decode("ascii")


@lru_cache(maxsize=1024)
def _granted(rules: tuple[str, ...]) -> tuple[RouteRule, ...]:
    """Parse a key's stored rules; an invalid one grants nothing."""
    found = []
    for text in rules:
        try:
            found.append(parse_rule(text))
        except InvalidRequest:
            continue
    return tuple(found)


@lru_cache(maxsize=1024)
def _model_pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Compile patterns with the wildcards ``*`` and ``?``.

    fnmatch translates them to atomic groups, so no pattern takes exponential time.
    """
    return re.compile("|".join(fnmatch.translate(pattern.replace("[", "[[]")) for pattern in patterns))


class RoutePolicy:
    """Checks routes and models by the operator's rules and those of each key.

    Args:
        tenant_routes: the rules for keys without ``allowed_routes``.

    Raises:
        InvalidRequest: a rule cannot be read.
    """

    def __init__(self, tenant_routes: TenantRoutes) -> None:
        self._allow = tuple(parse_rule(text) for text in tenant_routes.allow)
        deny = [parse_rule(text) for text in tenant_routes.deny]
        dispatched = [
            Route(row.path, row.route_class)
            for row in ROUTES
            if row.route_class is RouteClass.INFERENCE and row.model is ModelPlace.BODY
        ]
        if any(rule.denies(route) for rule in deny for route in dispatched):
            # depending on the body, it acts as the denied route
            deny += [RouteRule(path=row.path) for row in ROUTES if row.dispatches]
        self._deny = tuple(deny)

    def check_route(self, principal: Principal, route: Route) -> None:
        """Check that a principal may call a route.

        Raises:
            RouteNotAllowed: it may not; the message says what would allow it.
            RouteNotFound: it may not call what is not known, and vLLM does not have this route.
            RouteMethodNotAllowed: likewise, and vLLM has the route, but not for this method.
        """
        if principal.is_administrator:
            return
        if principal.cache_salt and route.row.prefix_cache is PrefixCache.SHARED:
            raise RouteNotAllowed(
                f"This key has its own prefix cache (cache_isolation), and vLLM cannot isolate prompts on "
                f"{route.path[:CLIP]}. Use a key without cache_isolation."
            )
        if principal.allowed_routes:
            if not _any_matches(_granted(principal.allowed_routes), route):
                raise _unknown(route) or _refusal(route, "its allowed_routes do not name it")
            return
        if self._is_denied(route):
            raise _refusal(route, "the operator closed it in passthrough.tenant_routes.deny")
        if route.route_class is RouteClass.PRIVILEGED and not _any_matches(self._allow, route):
            raise _unknown(route) or _refusal(route, "it is a privileged route", openable=True)

    def _is_denied(self, route: Route) -> bool:
        if not self._deny:
            return False
        # A server may interpret an ambiguous path as a denied one.
        return not route.certain or any(rule.denies(route) for rule in self._deny)

    def check_model(self, principal: Principal, model: str) -> None:
        """Check that a principal may use a model. Its key, user, team and organization must all allow it.

        Patterns are case-sensitive; ``*`` and ``?`` are wildcards. As in LiteLLM, the team's own name for a model
        (``model_aliases``), which administrators set, allows the model to the team, and the others may allow that name.

        Raises:
            ModelNotAllowed: one of them does not allow it; the message says which.
        """
        if principal.is_administrator:
            return
        aliases = principal.team_aliases
        names = (model, *(name for name, target in aliases.items() if target == model)) if aliases else (model,)
        _check_level("This key", "key", principal.models, names)
        if principal.user_models:
            _check_level("The user of this key", "user", principal.user_models, names)
        if principal.team_models and len(names) == 1:
            _check_level("The team of this key", "team", principal.team_models, names)
        if principal.organization_models:
            _check_level("The organization of this key", "organization", principal.organization_models, names)

    def check_unlisted_model(self, principal: Principal, model: str) -> None:
        """Check the name of a model that no entry of ``model_list`` names: it must not be a path.

        A LoRA resolver of vLLM looks for an adapter at the path that a name gives, so several names may mean one
        adapter, and a name that a wildcard allows may mean one that it does not.

        Raises:
            ModelNotAllowed: the name is a path with empty or dot segments, or has control characters.
        """
        if is_no_path(model) or principal.is_administrator or not _is_path(model, absolute=principal.counts_models):
            return
        raise ModelNotAllowed(
            f"The model's name {model[:CLIP]!r} has control characters, or is a path with empty or dot segments. Send "
            "the model's own name.",
            param="model",
        )


def is_no_path(name: str) -> bool:
    """Return whether a name is quickly seen to be no path, as most are."""
    return "/" not in name and "\\" not in name and name.isprintable() and not name.startswith(".")


def _is_path(name: str, *, absolute: bool) -> bool:
    """Return whether a name may be another spelling of a path.

    Args:
        name: a model's name.
        absolute: whether an absolute path counts. A server without ``--served-model-name`` has such names.
    """
    if _CONTROL.search(name) is not None:
        return True
    segments = _SEPARATOR.split(name)
    if not segments[0] and not absolute:
        del segments[0]
    return any(segment in ("", ".", "..") for segment in segments)


def matches_model(patterns: tuple[str, ...], model: str) -> bool:
    """Return whether patterns of models allow a model; no pattern allows all."""
    return not patterns or model in patterns or _model_pattern(patterns).match(model) is not None


def _check_level(who: str, level: str, patterns: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Check that a level allows a model by one of its names, of which the first is the model's own."""
    model = names[0]
    if matches_model(patterns, model) or any(matches_model(patterns, name) for name in names[1:]):
        return
    allowed = ", ".join(pattern[:CLIP] for pattern in patterns[:10]) + (", …" if len(patterns) > 10 else "")
    short = _SHORT.get(level, level)
    raise ModelNotAllowed(
        # LiteLLM's clients look for its words, with which the message begins
        f"{short} not allowed to access model. {who} may not use the model {model[:CLIP]!r}. It may use: {allowed}. "
        f"An administrator can change the {level}'s models.",
        param="model",
        level=short,
    )


def _any_matches(rules: Sequence[RouteRule], route: Route) -> bool:
    return any(rule.matches(route) for rule in rules)


def _unknown(route: Route) -> GatewayError | None:
    """Return the refusal of what vLLM does not have, in vLLM's place; None for a route that it has.

    Clients look for routes of other services, and take a 403 for a fault of their key.
    """
    if not route.certain:
        return None
    path = route.path[:CLIP]
    if route.row is UNKNOWN:
        return RouteNotFound(
            f"vLLM has no route {path}, as far as the gateway knows, so no server was asked. If a plugin of the server "
            f"serves it: {_OPENS}; {_OPENS_TO_ALL}."
        )
    if route.route_class is route.row.route_class:
        return None
    methods = ", ".join(method.decode() for method in route.row.methods)
    return RouteMethodNotAllowed(f"vLLM serves {path} by {methods} only, so no server was asked.", route.row.methods)


def _refusal(route: Route, reason: str, openable: bool = False) -> RouteNotAllowed:
    path = route.path[:CLIP]
    if not route.certain:
        return RouteNotAllowed(
            f"This key may not call {path}: the path can be read in more than one way, and so it counts as privileged. "
            "Send the plain path, without escapes, empty or dot segments, or use the master key."
        )
    opens = f"{_OPENS}; {_OPENS_TO_ALL}" if openable else _OPENS
    return RouteNotAllowed(f"This key may not call {path}: {reason}. {opens[0].upper()}{opens[1:]}.")
