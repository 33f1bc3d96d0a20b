"""What kind of thing a request to a vLLM server does, read from its method and path. What is not known is privileged.

The tables are vLLM 0.32's routes (``vllm/entrypoints/**/api_router.py``, ``launchers/dp_supervisor.py``). Endpoint
plugins may add others, so a path that no table holds is privileged. So is a path that two readers could understand
differently: uvicorn decodes percent escapes once and Starlette matches the result literally, while a proxy between may
merge slashes, resolve dot segments or cut ``;parameters``.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache

import attrs

#: longer paths are decided anew each time, so that the caches stay below a few hundred kilobytes
MEMOISED_LENGTH = 256


class RouteClass(enum.Enum):
    """How far a route reaches."""

    #: uses a model
    INFERENCE = "inference"
    #: tells how the server is
    READ_ONLY = "read_only"
    #: changes the server for everyone, or is not known
    PRIVILEGED = "privileged"


@attrs.frozen
class Route:
    """What a request asks of the server.

    Attributes:
        path: the path that the server sees, decoded; as it came where it is not `certain`.
        route_class: how far it reaches.
        takes_model: whether the request's body names a model.
        certain: whether every reader understands the path alike. Where not, only a class name can open it.
        name: the known route's path, with ``{id}`` where an id stands; empty where it is not known.
    """

    path: str
    route_class: RouteClass
    takes_model: bool = False
    certain: bool = True
    name: str = ""


@attrs.frozen
class KnownRoute:
    """One row of the tables.

    Attributes:
        path: the path on the server; ``{id}`` stands for one segment, a last ``/*`` for everything below.
        takes_model: whether a POST's body carries ``model``.
        alias: whether it also works without its ``/v1``: OpenAI's and Anthropic's routes that vLLM's root lacks.
    """

    path: str
    takes_model: bool = False
    alias: bool = False


INFERENCE_ROUTES = (
    KnownRoute("/v1/chat/completions", takes_model=True, alias=True),
    KnownRoute("/v1/chat/completions/batch", takes_model=True, alias=True),
    KnownRoute("/v1/completions", takes_model=True, alias=True),
    KnownRoute("/v1/responses", takes_model=True, alias=True),
    # with care: these name a response by its id alone, whoever made it
    KnownRoute("/v1/responses/{id}", alias=True),
    KnownRoute("/v1/responses/{id}/cancel", alias=True),
    KnownRoute("/v1/messages", takes_model=True, alias=True),
    KnownRoute("/v1/messages/count_tokens", takes_model=True, alias=True),
    KnownRoute("/v1/embeddings", takes_model=True, alias=True),
    KnownRoute("/v1/audio/transcriptions", takes_model=True, alias=True),
    KnownRoute("/v1/audio/translations", takes_model=True, alias=True),
    # a WebSocket: its model comes in a `session.update` event, which the gateway does not read
    KnownRoute("/v1/realtime", alias=True),
    KnownRoute("/cohere/v2/chat", takes_model=True),
    KnownRoute("/v2/embed", takes_model=True),
    KnownRoute("/score", takes_model=True),
    KnownRoute("/v1/score", takes_model=True),
    KnownRoute("/rerank", takes_model=True),
    KnownRoute("/v1/rerank", takes_model=True),
    KnownRoute("/v2/rerank", takes_model=True),
    KnownRoute("/classify", takes_model=True),
    KnownRoute("/pooling", takes_model=True),
    KnownRoute("/generative_scoring", takes_model=True),
    KnownRoute("/v1/systemone", takes_model=True),
    KnownRoute("/tokenize", takes_model=True),
    KnownRoute("/detokenize", takes_model=True),
    # dispatches by the shape of the body to any of the above
    KnownRoute("/invocations", takes_model=True),
)

READ_ONLY_ROUTES = (
    KnownRoute("/v1/models", alias=True),
    KnownRoute("/health"),
    KnownRoute("/ping"),
    KnownRoute("/load"),
    KnownRoute("/version"),
    KnownRoute("/kv_event_sources"),
    KnownRoute("/metrics"),
    KnownRoute("/metrics/*"),
    KnownRoute("/docs"),
    KnownRoute("/docs/oauth2-redirect"),
    KnownRoute("/redoc"),
    KnownRoute("/openapi.json"),
    KnownRoute("/ready"),
    KnownRoute("/readyz"),
    KnownRoute("/is_scaling_elastic_ep"),
)

#: Every other path is privileged without being named. These are named because a row above would take them in, or
#: because they have an alias, or because they use a model, which is to be paid for.
PRIVILEGED_ROUTES = (
    KnownRoute("/inference/v1/generate", takes_model=True),
    KnownRoute("/v1/responses/render"),
    KnownRoute("/v1/load_lora_adapter", alias=True),
    KnownRoute("/v1/unload_lora_adapter", alias=True),
)

#: A known path keeps its class for these methods: where vLLM does not take one of them, it answers 405 and nothing
#: happens. Any other method on a known path is privileged.
ORDINARY_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"POST"))

_ID = r"[A-Za-z0-9._~:@=+-]+"

# RFC 3986 §6.2.2.2: these escapes mean the same decoded or not, to every reader
_UNRESERVED_ESCAPE = re.compile(rb"%(2[DE]|3[0-9]|[46][1-9A-F]|[57][0-9A]|5F|7E)", re.IGNORECASE)
# non-empty segments of what no reader treats specially; `;`, backslash and the other escapes are left out on purpose
_PLAIN_PATH = re.compile(rb"/|(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?")


def _as_pattern(path: str) -> str:
    pattern = re.escape(path).replace(re.escape("{id}"), _ID)
    return pattern.removesuffix(r"\*") + ".*" if path.endswith("/*") else pattern


def _exact(path: str) -> bool:
    return "{id}" not in path and not path.endswith("/*")


_Row = tuple[RouteClass, bool, str]
_ROWS: list[tuple[KnownRoute, _Row]] = [
    (known, (route_class, known.takes_model, known.path))
    for route_class, table in (
        (RouteClass.PRIVILEGED, PRIVILEGED_ROUTES),
        (RouteClass.READ_ONLY, READ_ONLY_ROUTES),
        (RouteClass.INFERENCE, INFERENCE_ROUTES),
    )
    for known in table
]
_EXACT: dict[str, _Row] = {known.path: row for known, row in _ROWS if _exact(known.path)}
_PATTERNS = [(re.compile(_as_pattern(known.path)), row) for known, row in _ROWS if not _exact(known.path)]

_ALIASED = [known.path.removeprefix("/v1") for known, _ in _ROWS if known.alias]
_EXACT_ALIASES = frozenset(path.encode() for path in _ALIASED if _exact(path))
_ALIAS_PATTERN = re.compile("|".join(_as_pattern(path) for path in _ALIASED if not _exact(path)).encode())


def without_alias(path: bytes) -> bytes:
    """Return the server's path for `path`, which may be one of vLLM's ``/v1`` routes without its ``/v1``.

    Only the plain spelling is an alias: vLLM's root routes and every other path come back as they are.
    """
    if path in _EXACT_ALIASES or _ALIAS_PATTERN.fullmatch(path):
        return b"/v1" + path
    return path


def prefix_without_alias(prefix: str) -> str:
    """Return the server's prefix for `prefix` (with its last slash), if what is below it are aliases."""
    if prefix != "/" and any(path.startswith(prefix) for path in _ALIASED):
        return "/v1" + prefix
    return prefix


def plain_path(path: bytes) -> str | None:
    """Return `path` decoded where every reader understands it alike, else None."""
    if b"%" in path:
        path = _UNRESERVED_ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), path)
    return path.decode("ascii") if _PLAIN_PATH.fullmatch(path) else None


def classify(method: bytes, path: bytes) -> Route:
    """Tell what a request does.

    Args:
        method: the HTTP method, as it came (methods are case-sensitive: RFC 9110 §9.1).
        path: the path that is sent to the server, raw, without the query.

    Returns:
        The route; `RouteClass.PRIVILEGED` for every path that is not known or not certain, and for every method outside
        `ORDINARY_METHODS`.
    """
    if len(path) <= MEMOISED_LENGTH and method in ORDINARY_METHODS:
        return _memoised(method, path)
    return _classify(method, path)


def _classify(method: bytes, path: bytes) -> Route:
    plain = plain_path(path)
    if plain is None:
        return Route(path.decode("latin-1"), RouteClass.PRIVILEGED, certain=False)
    row = _EXACT.get(plain)
    if row is None:
        row = next((row for pattern, row in _PATTERNS if pattern.fullmatch(plain)), None)
    if row is None or method not in ORDINARY_METHODS:
        return Route(plain, RouteClass.PRIVILEGED)
    route_class, takes_model, name = row
    return Route(plain, route_class, takes_model and method == b"POST", name=name)


_memoised = lru_cache(maxsize=1024)(_classify)
