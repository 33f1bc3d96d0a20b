"""Which paths of the gateway are vLLM's, and which path of the server each of them means.

Everything below ``/vllm`` is. So are, at the gateway's root, the routes that clients of OpenAI, Azure, Anthropic and
LiteLLM use: the inference routes of `twisted_vllm.api_routes` by their plain paths, also below ``/openai``, and below
``/engines/MODEL`` and ``/openai/deployments/MODEL``, where the path names the model. Every other path at the root is
the admin API's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import attrs

from twisted_vllm.api_routes import (
    MEMOISED_LENGTH,
    ROUTES,
    UNKNOWN,
    ModelPlace,
    RouteClass,
    VllmRoute,
    classify,
    is_exact,
    pattern_of,
    without_alias,
)

#: below this path everything is vLLM's
MOUNT = b"/vllm"

#: the prefix of Azure's SDKs, as in ``/openai/responses`` and ``/openai/v1/responses``
AZURE = "/openai"

_BELOW = MOUNT + b"/"

# segments as RFC 3986 §3.3 has them, without dot segments, parameters and empty ones
_SEGMENT = r"(?!\.\.?(?:/|\Z))(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+"
_NAMED = r"(?:(?:/v1)?/engines|/openai/deployments)/(" + _SEGMENT + "(?:/" + _SEGMENT + ")*?)/("
_ESCAPED_DOT = re.compile(rb"%2e", re.IGNORECASE)


@attrs.frozen
class Mount:
    """What a path of the gateway means to a server.

    Attributes:
        prefix: what a path of the server gets in front to be the gateway's: `MOUNT`, or nothing.
        path: the raw path for the server, which may still lack its ``/v1``.
        model: the model that the path names, decoded; empty if it names none.
    """

    prefix: bytes
    path: bytes
    model: str = ""


def is_at_root(row: VllmRoute) -> bool:
    """Return whether a route of vLLM is also served at the gateway's root."""
    return row.route_class is RouteClass.INFERENCE


class Mounts:
    """Decides which paths are vLLM's."""

    def __init__(self, root_routes: bool = True, path_aliases: bool = True) -> None:
        """Set up.

        Args:
            root_routes: whether vLLM's inference routes are also at the gateway's root.
            path_aliases: whether OpenAI's and Anthropic's routes also work without ``/v1``.
        """
        self.reconfigure(root_routes, path_aliases)

    def reconfigure(self, root_routes: bool, path_aliases: bool) -> None:
        """Use other settings from now on; the arguments are the constructor's."""
        self._root_routes = root_routes
        rows = [row for row in ROUTES if is_at_root(row)]
        paths = [(prefix, path) for row in rows for path in _spellings(row, path_aliases) for prefix in ("", AZURE)]
        self._exact = {(prefix + path).encode(): Mount(b"", path.encode()) for prefix, path in paths if is_exact(path)}
        self._patterns = tuple(
            (re.compile((prefix + pattern_of(path)).encode()), len(prefix))
            for prefix, path in paths
            if not is_exact(path)
        )
        self._below_model = {
            name.encode(): row.path.encode() for row in rows if row.model is ModelPlace.BODY for name in _short(row)
        }
        # a longer name first: "chat/completions/batch" ends in no other
        names = "|".join(re.escape(name.decode()) for name in self._below_model)
        self._named = re.compile((_NAMED + names + ")").encode())
        self._memoised = lru_cache(maxsize=1024)(self._at_root)

    def find(self, path: bytes) -> Mount | None:
        """Return what a path means to a server; None if it is not vLLM's.

        At the root only plain paths are: none with dot segments, doubled slashes or escapes, but for the escapes in a
        model's name. A last slash is cut off there: vLLM and LiteLLM redirect to the path without it.

        Args:
            path: the path of the request target as received, without the query.
        """
        if path.startswith(_BELOW) or path == MOUNT:
            return Mount(MOUNT, path[len(MOUNT) :])
        if not self._root_routes:
            return None
        found = self._exact.get(path)
        if found is not None:
            return found
        return self._memoised(path) if len(path) <= MEMOISED_LENGTH else self._at_root(path)

    def _at_root(self, path: bytes) -> Mount | None:
        path = path.removesuffix(b"/")
        found = self._exact.get(path)
        if found is not None:
            return found
        for pattern, start in self._patterns:
            if pattern.fullmatch(path):
                # another row's path may look like one with an id
                route = classify(b"GET", without_alias(path[start:]))
                return Mount(b"", path[start:]) if route.certain and is_at_root(route.row) else None
        named = self._named.fullmatch(_ESCAPED_DOT.sub(b".", path))
        model = None if named is None else _decoded(named[1])
        return None if named is None or model is None else Mount(b"", self._below_model[named[2]], model)


def prefix_of(target: bytes) -> bytes:
    """Return what a path of the server gets in front for the client of a request that was forwarded.

    Args:
        target: the request target.
    """
    return MOUNT if target.startswith(MOUNT) else b""


def route_below_mount(path: bytes) -> str | None:
    """Return the gateway's path of the route of vLLM that a path without ``/vllm`` may mean; None if it means none.

    Args:
        path: the path as received.
    """
    found = _EVERYWHERE.find(path)
    row = classify(b"GET", without_alias(path if found is None else found.path)).row
    return None if row is UNKNOWN else MOUNT.decode() + row.path


def _spellings(row: VllmRoute, aliases: bool) -> Iterator[str]:
    yield row.path
    if row.alias and aliases:
        yield row.path.removeprefix("/v1")


def _short(row: VllmRoute) -> Iterator[str]:
    """Yield how a route is called below a model: ``chat/completions``, ``score`` and ``v1/score``."""
    yield row.path[1:]
    if row.alias:
        yield row.path.removeprefix("/v1/")


def _decoded(name: bytes) -> str | None:
    """Return a model's name from a path; None if it is not text."""
    try:
        text = unquote_to_bytes(name).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


_EVERYWHERE = Mounts()
