"""vLLM's HTTP routes: one row per route, with everything that the gateway knows about it.

The rows are vLLM 0.32's routes (``vllm/entrypoints/**/api_router.py``, ``launchers/dp_supervisor.py``). A new route is
one row in `ROUTES`; if its response reports usage in a new format, add a `UsageFormat` and its readers in
:mod:`twisted_vllm.usage.readers.registry`.

Endpoint plugins may add routes, so a path without a row is privileged. So is an ambiguous path: uvicorn decodes percent
escapes once and Starlette matches the result literally, while a proxy in between may merge slashes, resolve dot
segments or cut ``;parameters``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from functools import lru_cache, partial
from urllib.parse import unquote_to_bytes

import attrs

#: longer paths are not cached, so that the caches stay below a few hundred kilobytes
MEMOISED_LENGTH = 256


class RouteClass(enum.Enum):
    """The privilege that a route needs."""

    #: uses a model
    INFERENCE = "inference"
    #: reports the state of the server
    READ_ONLY = "read_only"
    #: changes the server for everyone, or is unknown
    PRIVILEGED = "privileged"


class ModelPlace(enum.Enum):
    """How a request names its model."""

    #: no model
    NONE = "none"
    #: the member ``model`` of a JSON body, or the field ``model`` of a multipart form
    BODY = "body"
    #: a header, for an adapter; without it the server's base model serves, whatever the body says
    HEADER = "header"
    #: an event on a WebSocket, which the gateway does not read
    EVENT = "event"
    #: unknown: the body may have a member ``model``
    PERHAPS = "perhaps"


class PrefixCache(enum.Enum):
    """Whether a route uses vLLM's prefix cache, and whether ``cache_salt`` isolates prompts in it."""

    #: no model processes a prompt
    UNUSED = "unused"
    #: the body's ``cache_salt`` isolates
    SALTED = "salted"
    #: the server ignores ``cache_salt``, so prompts cannot be isolated
    SHARED = "shared"


class UsageFormat(enum.Enum):
    """How a route's successful responses report usage."""

    #: not at all; or a stored response, which was counted when it was created
    NONE = "none"
    #: ``usage`` in the JSON; in a stream, in chunks that each carry about one token
    COMPLETIONS = "completions"
    #: likewise; the first chunk of each choice contains only its role
    CHAT = "chat"
    #: ``usage`` in the JSON; in a stream, in the event that ends the response
    RESPONSES = "responses"
    #: ``usage`` in Anthropic's format; in a stream, in ``message_start`` and ``message_delta``
    MESSAGES = "messages"
    #: ``usage`` in Cohere's format; in a stream, in its last event
    COHERE_CHAT = "cohere_chat"
    #: ``meta.billed_units``
    COHERE_EMBED = "cohere_embed"
    #: the seconds of audio in ``usage`` or ``duration``; in a stream, as `COMPLETIONS`
    TRANSCRIPTION = "transcription"
    #: ``count``: tokens that no model processed
    TOKENIZE = "tokenize"
    #: ``input_tokens``: tokens that no model processed
    TOKEN_COUNT = "token_count"


class Repeat(enum.Enum):
    """Whether a request may be sent again after a server may have begun to process it (RFC 9110 §9.2.2), and why."""

    #: not: it changes the server, or nobody knows what it does
    NEVER = "never"
    #: it generates, which costs GPU time and money: not at the server that may be at work on it, but at another one
    #: once the first has failed
    ELSEWHERE = "elsewhere"
    #: it reports the state of the server and changes nothing
    READS = "reads"
    #: its response follows from its body alone and nothing is kept; it costs at most another pass over the prompt
    COMPUTES = "computes"


@attrs.frozen(eq=False)
class BodyFields:
    """The JSON members that decide how much a request may generate.

    vLLM converts values as pydantic does, so ``"40"`` and ``40.0`` are numbers. Of several members, the largest counts.

    Attributes:
        limits: the members that limit the tokens of one choice.
        choices: the members that set the number of choices for each prompt.
        prompts: the members that may contain several prompts (or questions); their numbers are added.
        texts: the members whose number of texts says how often `repeated` is processed.
        repeated: the members that the server processes once with each of these texts.
        paired: those among `repeated` that may be a list as long as `texts`, whose items are processed once.
        inside: the member that contains `limits` and `choices`; empty if they are at the top level.
        default_limit: the limit if the client sends none of `limits`; None if that is the model's length.
        least_limit: a lower limit counts as this one.
        tokens: whether a prompt may be a list of tokens.
    """

    limits: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    paired: frozenset[str] = frozenset()
    inside: str = ""
    default_limit: int | None = None
    least_limit: int = 0
    tokens: bool = False


#: the fields of a route that generates nothing
NO_FIELDS = BodyFields()
#: likewise, where a prompt may be a list of tokens
PROMPT_FIELDS = BodyFields(tokens=True)


@attrs.frozen
class VllmRoute:
    """One vLLM route: a row of `ROUTES`.

    Attributes:
        path: the path on the server; ``{id}`` stands for one segment, a last ``/*`` for everything below.
        route_class: the privilege that it needs.
        methods: the methods that vLLM serves.
        model: how a request names its model.
        alias: whether it also works without ``/v1``: OpenAI's and Anthropic's routes that vLLM's root lacks.
        usage: how its responses report usage.
        generates: whether it generates tokens; other routes use only the prompt's.
        fields: the members of its body that decide how much it generates.
        prefix_cache: whether it uses vLLM's prefix cache.
        streams: whether it streams its response if the body says ``stream``.
        stream_options: whether it supports ``stream_options``, with which the gateway can request a stream's usage. Its
            `usage` is then `UsageFormat.CHAT` or `UsageFormat.COMPLETIONS`.
        audio_uploads: whether its multipart form may contain audio.
        dispatches: whether it acts as another route, depending on the body.
        repeat: whether a request by one of `methods` may be sent again, and why.
        stores: whether the server may store the response, for the key that made it.
        priority_in_body: whether vLLM reads a request's priority from the body alone, and not from ``X-Vllm-Priority``.
        fan_out: whether a request by one of `methods` goes to all servers, because it is an act on the whole fleet or
            on all servers of a model. Its body must mean the same to each of them.
    """

    path: str
    route_class: RouteClass = RouteClass.PRIVILEGED
    methods: tuple[bytes, ...] = (b"POST",)
    model: ModelPlace = ModelPlace.NONE
    alias: bool = False
    usage: UsageFormat = UsageFormat.NONE
    generates: bool = False
    fields: BodyFields = NO_FIELDS
    prefix_cache: PrefixCache = PrefixCache.UNUSED
    streams: bool = True
    stream_options: bool = False
    audio_uploads: bool = False
    dispatches: bool = False
    repeat: Repeat = Repeat.NEVER
    stores: bool = False
    priority_in_body: bool = False
    fan_out: bool = False


#: the row of a route that has none
UNKNOWN = VllmRoute("", methods=(), model=ModelPlace.PERHAPS)

# ``use_beam_search`` generates as many beams as ``n`` says. vLLM 0.32 ignores ``best_of``; older versions do not.
_CHOICES = ("n", "best_of")
_CHAT_LIMITS = ("max_completion_tokens", "max_tokens")
#: chat: ``messages`` are always one prompt
CHAT_FIELDS = BodyFields(_CHAT_LIMITS, _CHOICES)
#: a batch of conversations
BATCH_FIELDS = BodyFields(_CHAT_LIMITS, _CHOICES, ("messages",))
#: completions: ``prompt`` may be several texts or token lists, and ``prompt_embeds`` several tensors
COMPLETION_FIELDS = BodyFields(("max_tokens",), _CHOICES, ("prompt", "prompt_embeds"), default_limit=16, tokens=True)
RESPONSE_FIELDS = BodyFields(("max_output_tokens",))
#: Anthropic's messages and Cohere's chat
MESSAGE_FIELDS = BodyFields(("max_tokens",))
#: a transcription; ``n`` is the number of beams
AUDIO_FIELDS = BodyFields(("max_completion_tokens",), ("n",))
GENERATE_FIELDS = BodyFields(("max_tokens",), _CHOICES, inside="sampling_params", tokens=True)
#: each document or text is scored together with the query, by all names that vLLM accepts
PAIR_FIELDS = BodyFields(
    texts=("documents", "items", "data_2", "text_2"),
    repeated=("query", "queries", "data_1", "text_1", "instruction"),
    paired=frozenset(("queries", "data_1", "text_1")),
    tokens=True,
)
#: likewise, and each item generates one token
ITEM_FIELDS = BodyFields(
    prompts=("items",), texts=("items",), repeated=("query", "instruction"), default_limit=1, tokens=True
)
#: each question is asked about one state, and its answer is one token, of a diffusion model two
QUESTION_FIELDS = BodyFields(
    prompts=("questions",),
    texts=("questions",),
    repeated=("state", "instructions", "images", "audio", "videos"),
    default_limit=2,
)
#: chat, completions (whose limit is 16 whatever ``max_completion_tokens`` says) or scoring, depending on the body
INVOCATION_FIELDS = attrs.evolve(
    PAIR_FIELDS, limits=_CHAT_LIMITS, choices=_CHOICES, prompts=("prompt", "prompt_embeds"), least_limit=16
)

_GET = (b"GET",)
# what Starlette and FastAPI add by themselves
_GET_OR_HEAD = (b"GET", b"HEAD")
# a mounted application, which ignores the method
_ANY = (b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"PATCH", b"DELETE")

_generating = partial(
    VllmRoute,
    route_class=RouteClass.INFERENCE,
    model=ModelPlace.BODY,
    generates=True,
    prefix_cache=PrefixCache.SALTED,
    repeat=Repeat.ELSEWHERE,
)
_prompt_only = partial(
    VllmRoute,
    route_class=RouteClass.INFERENCE,
    model=ModelPlace.BODY,
    usage=UsageFormat.COMPLETIONS,
    fields=PROMPT_FIELDS,
    prefix_cache=PrefixCache.SALTED,
    repeat=Repeat.COMPUTES,
    priority_in_body=True,
)
_tokenizing = partial(_prompt_only, prefix_cache=PrefixCache.UNUSED, priority_in_body=False)
_audio = partial(
    _generating,
    alias=True,
    usage=UsageFormat.TRANSCRIPTION,
    fields=AUDIO_FIELDS,
    audio_uploads=True,
    prefix_cache=PrefixCache.SHARED,
)
_read_only = partial(VllmRoute, route_class=RouteClass.READ_ONLY, methods=_GET, repeat=Repeat.READS)

ROUTES = (
    _generating("/v1/chat/completions", alias=True, usage=UsageFormat.CHAT, fields=CHAT_FIELDS, stream_options=True),
    # it passes ``stream`` to the engine, but reports the usage of the last piece alone
    _generating(
        "/v1/chat/completions/batch",
        alias=True,
        usage=UsageFormat.CHAT,
        fields=BATCH_FIELDS,
        streams=False,
        priority_in_body=True,
    ),
    _generating(
        "/v1/completions", alias=True, usage=UsageFormat.COMPLETIONS, fields=COMPLETION_FIELDS, stream_options=True
    ),
    _generating("/v1/responses", alias=True, usage=UsageFormat.RESPONSES, fields=RESPONSE_FIELDS, stores=True),
    # a virtual key gets the responses that it made: `twisted_vllm.proxy.response_ids`
    VllmRoute("/v1/responses/{id}", RouteClass.INFERENCE, methods=_GET, alias=True, repeat=Repeat.READS),
    VllmRoute("/v1/responses/{id}/cancel", RouteClass.INFERENCE, alias=True),
    _generating("/v1/messages", alias=True, usage=UsageFormat.MESSAGES, fields=MESSAGE_FIELDS),
    _tokenizing("/v1/messages/count_tokens", alias=True, usage=UsageFormat.TOKEN_COUNT),
    _prompt_only("/v1/embeddings", alias=True),
    _audio("/v1/audio/transcriptions"),
    _audio("/v1/audio/translations"),
    # a WebSocket, opened by GET
    VllmRoute(
        "/v1/realtime",
        RouteClass.INFERENCE,
        methods=_GET,
        model=ModelPlace.EVENT,
        alias=True,
        prefix_cache=PrefixCache.SHARED,
    ),
    _generating(
        "/cohere/v2/chat",
        usage=UsageFormat.COHERE_CHAT,
        fields=MESSAGE_FIELDS,
        prefix_cache=PrefixCache.SHARED,
    ),
    _prompt_only("/v2/embed", usage=UsageFormat.COHERE_EMBED, prefix_cache=PrefixCache.SHARED),
    _prompt_only("/score", fields=PAIR_FIELDS),
    _prompt_only("/v1/score", fields=PAIR_FIELDS),
    _prompt_only("/rerank", fields=PAIR_FIELDS),
    _prompt_only("/v1/rerank", fields=PAIR_FIELDS),
    _prompt_only("/v2/rerank", fields=PAIR_FIELDS),
    _prompt_only("/classify"),
    _prompt_only("/pooling"),
    _prompt_only("/generative_scoring", generates=True, fields=ITEM_FIELDS, repeat=Repeat.ELSEWHERE),
    _prompt_only("/v1/systemone", generates=True, fields=QUESTION_FIELDS, repeat=Repeat.ELSEWHERE),
    _tokenizing("/tokenize", usage=UsageFormat.TOKENIZE),
    _tokenizing("/detokenize", usage=UsageFormat.NONE),
    # chat, completions or any of the pooling routes; Amazon's container standards overwrite the body's model
    _generating(
        "/invocations",
        model=ModelPlace.HEADER,
        usage=UsageFormat.COMPLETIONS,
        fields=INVOCATION_FIELDS,
        stream_options=True,
        dispatches=True,
        priority_in_body=True,
    ),
    _read_only("/v1/models", alias=True),
    _read_only("/health"),
    _read_only("/ping", methods=(b"GET", b"POST")),
    _read_only("/load"),
    _read_only("/version"),
    _read_only("/kv_event_sources"),
    _read_only("/metrics", methods=_ANY),
    _read_only("/metrics/*", methods=_ANY),
    _read_only("/docs", methods=_GET_OR_HEAD),
    _read_only("/docs/oauth2-redirect", methods=_GET_OR_HEAD),
    _read_only("/redoc", methods=_GET_OR_HEAD),
    _read_only("/openapi.json", methods=_GET_OR_HEAD),
    _read_only("/ready"),
    _read_only("/readyz"),
    _read_only("/is_scaling_elastic_ep", methods=(b"POST",)),
    # Every path without a row is privileged, too. Some of these have their row because they use a model, because a row
    # above would match them, because they have an alias, or because they go to all servers.
    _generating(
        "/inference/v1/generate",
        route_class=RouteClass.PRIVILEGED,
        usage=UsageFormat.COMPLETIONS,
        fields=GENERATE_FIELDS,
        stream_options=True,
        priority_in_body=True,
    ),
    *(
        VllmRoute(f"/v1/{what}", model=ModelPlace.BODY, repeat=Repeat.COMPUTES)
        for what in (
            "chat/completions/render",
            "chat/completions/derender",
            "completions/render",
            "completions/derender",
            "messages/render",
            "responses/render",
        )
    ),
    VllmRoute("/v1/load_lora_adapter", alias=True, fan_out=True),
    VllmRoute("/v1/unload_lora_adapter", alias=True, fan_out=True),
    # Not /collective_rpc, /init_weight_transfer_engine, /scale_elastic_ep and /fault_tolerance/apply: what they ask for
    # is of one server, such as ranks.
    *(
        VllmRoute(f"/{act}", fan_out=True)
        for act in (
            "sleep",
            "wake_up",
            "release_kv_cache_memory",
            "reset_prefix_cache",
            "reset_mm_cache",
            "reset_encoder_cache",
            "start_profile",
            "stop_profile",
            "pause",
            "resume",
            "abort_requests",
            "inference/v1/abort_requests",
            "start_weight_update",
            "start_draft_weight_update",
            "update_weights",
            "finish_weight_update",
            "update_weight_version",
            "shutdown_weight_transfer_engine",
        )
    ),
    # what is known to be privileged is refused with a 403, what is not known with a 404
    *(
        VllmRoute(path, model=ModelPlace.PERHAPS)
        for path in (
            "/collective_rpc",
            "/init_weight_transfer_engine",
            "/scale_elastic_ep",
            "/fault_tolerance/apply",
            "/weight_checker",
        )
    ),
    *(
        VllmRoute(path, methods=_GET, model=ModelPlace.PERHAPS)
        for path in (
            "/adapters",
            "/fault_tolerance/status",
            "/get_world_size",
            "/is_paused",
            "/is_sleeping",
            "/server_info",
            "/tokenizer_info",
            "/weight_info",
        )
    ),
    VllmRoute("/adapters/{id}", methods=(b"DELETE",), model=ModelPlace.PERHAPS),
)

#: A known path keeps its class for these methods and those that vLLM serves there: to one of these that vLLM does not
#: serve it answers 405, and nothing happens. Any other method on a known path is privileged.
ORDINARY_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"POST"))

#: methods that change nothing on a known path, whatever it does for others (RFC 9110 §9.2.1)
_SAFE_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS"))


@attrs.frozen
class Route:
    """The requested route.

    Attributes:
        path: the path for the server, decoded; as received if it is not `certain`.
        route_class: the privilege that it needs.
        takes_model: whether the request uses a model.
        certain: whether the path is unambiguous. If not, only a rule that names a class can allow it.
        name: the known route's path, with ``{id}`` in place of an id; empty if it is unknown.
        row: the path's row, for any method; of an ambiguous path, the row that a server or proxy may find; `UNKNOWN` if
            there is none.
        repeatable: whether the request may be sent again although a server may have begun to process it.
        fails_over: whether it may be sent to another server after the first has failed.
        fans_out: whether it goes to all servers.
    """

    path: str
    route_class: RouteClass
    takes_model: bool = False
    certain: bool = True
    name: str = ""
    row: VllmRoute = UNKNOWN
    repeatable: bool = False
    fails_over: bool = False
    fans_out: bool = False


#: how often an ambiguous path is decoded
_MAX_DECODINGS = 4

_ID = r"[A-Za-z0-9._~:@=+-]+"

# RFC 3986 §6.2.2.2: these escapes have the same meaning decoded or not
_UNRESERVED_ESCAPE = re.compile(rb"%(2[DE]|3[0-9]|[46][1-9A-F]|[57][0-9A]|5F|7E)", re.IGNORECASE)
# non-empty segments of characters without special meaning; `;`, backslash and other escapes are excluded on purpose
_PLAIN_PATH = re.compile(rb"/|(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?")


class RouteTable:
    """Finds the row of a request."""

    def __init__(self, rows: Iterable[VllmRoute]) -> None:
        """Build the look-ups; an exact path takes precedence over a pattern."""
        self.rows = tuple(rows)
        self._exact = {row.path: row for row in self.rows if is_exact(row.path)}
        self._patterns = [(re.compile(pattern_of(row.path)), row) for row in self.rows if not is_exact(row.path)]
        self._aliases = [row.path.removeprefix("/v1") for row in self.rows if row.alias]
        self._exact_aliases = frozenset(path.encode() for path in self._aliases if is_exact(path))
        patterns = "|".join(pattern_of(path) for path in self._aliases if not is_exact(path))
        # (?!) matches nothing
        self._alias_pattern = re.compile((patterns or "(?!)").encode())
        self._memoised = lru_cache(maxsize=1024)(self._classify)

    def classify(self, method: bytes, path: bytes) -> Route:
        """Return the route of a request.

        Args:
            method: the HTTP method, as received (methods are case-sensitive: RFC 9110 §9.1).
            path: the raw path for the server, without the query.

        Returns:
            The route; `RouteClass.PRIVILEGED` for every unknown or ambiguous path, and for every method that is neither
            in `ORDINARY_METHODS` nor one that vLLM serves there.
        """
        if len(path) <= MEMOISED_LENGTH and method in ORDINARY_METHODS:
            return self._memoised(method, path)
        return self._classify(method, path)

    def _classify(self, method: bytes, path: bytes) -> Route:
        plain = plain_path(path)
        row = UNKNOWN if plain is None else self._row(plain)
        if row is UNKNOWN and b"%" in path:
            # uvicorn decodes each path once, and Starlette matches the result
            decoded = _plain(unquote_to_bytes(path))
            if decoded is not None and (found := self._row(decoded)) is not UNKNOWN:
                plain, row = decoded, found
        if plain is None:
            row = self._row(_resolved(path))
            return Route(path.decode("latin-1"), RouteClass.PRIVILEGED, _uses_model(row, method), False, row=row)
        is_own = method in row.methods
        if row is UNKNOWN or not (is_own or method in ORDINARY_METHODS):
            return Route(plain, RouteClass.PRIVILEGED, row=row)
        is_safe = method in _SAFE_METHODS
        return Route(
            plain,
            row.route_class,
            _uses_model(row, method),
            name=row.path,
            row=row,
            repeatable=is_safe or (is_own and row.repeat in (Repeat.READS, Repeat.COMPUTES)),
            fails_over=is_safe or (is_own and row.repeat is not Repeat.NEVER),
            fans_out=is_own and row.fan_out,
        )

    def _row(self, path: str) -> VllmRoute:
        row = self._exact.get(path)
        if row is None:
            row = next((row for pattern, row in self._patterns if pattern.fullmatch(path)), UNKNOWN)
        return row

    def without_alias(self, path: bytes) -> bytes:
        """Return the server's path for `path`, which may be one of vLLM's ``/v1`` routes without its ``/v1``.

        Only the plain spelling is an alias; every other path is returned unchanged, vLLM's root routes included.
        """
        if path in self._exact_aliases or self._alias_pattern.fullmatch(path):
            return b"/v1" + path
        return path

    def prefix_without_alias(self, prefix: str) -> str:
        """Return the server's prefix for `prefix` (with its last slash), if there are aliases below it."""
        if prefix != "/" and any(path.startswith(prefix) for path in self._aliases):
            return "/v1" + prefix
        return prefix


def plain_path(path: bytes) -> str | None:
    """Return `path` decoded, or None if it is ambiguous."""
    if b"%" in path:
        path = _UNRESERVED_ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), path)
    return _plain(path)


def _plain(path: bytes) -> str | None:
    return path.decode("ascii") if _PLAIN_PATH.fullmatch(path) else None


def _resolved(path: bytes) -> str:
    """Return what the most lenient server or proxy makes of an ambiguous path.

    Escapes are decoded as often as there are some, backslashes separate segments, ``;parameters`` are cut, empty
    segments ignored and dot segments resolved. Starlette's patterns end in ``$``, which also matches before a last line
    feed.
    """
    for _ in range(_MAX_DECODINGS):
        decoded = unquote_to_bytes(path)
        if decoded == path:
            break
        path = decoded
    path = path.removesuffix(b"\n")
    segments: list[bytes] = []
    for piece in path.replace(b"\\", b"/").split(b"/"):
        segment = piece.partition(b";")[0]
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return "/" + b"/".join(segments).decode("latin-1")


def _uses_model(row: VllmRoute, method: bytes) -> bool:
    return row.model in (ModelPlace.BODY, ModelPlace.HEADER) and method in row.methods


def is_exact(path: str) -> bool:
    """Return whether a row's path stands for one path."""
    return "{id}" not in path and not path.endswith("/*")


def pattern_of(path: str) -> str:
    """Return the regular expression of the paths that a row's path stands for."""
    pattern = re.escape(path).replace(re.escape("{id}"), _ID)
    return pattern.removesuffix(r"\*") + ".*" if path.endswith("/*") else pattern


_TABLE = RouteTable(ROUTES)
classify = _TABLE.classify
without_alias = _TABLE.without_alias
prefix_without_alias = _TABLE.prefix_without_alias
