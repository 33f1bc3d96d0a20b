"""The rules about fields: paths, limits, and what the gateway forbids and limits by default.

The fields are those of vLLM 0.32 (``vllm/entrypoints/**/protocol.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import attrs

#: stands in a list of allowed fields for all of them
EVERYTHING = "*"

#: names in one path, and the largest limit
MAX_DEPTH = 8
MAX_LIMIT = 2**53 - 1

_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,63}(?:\[\])?"

_FIELD = rf"(?!model([.=]|$)){_NAME}(\.({_NAME}|\*)){{0,{MAX_DEPTH - 1}}}"

#: the syntax of a path, as a regular expression that JSON Schema accepts too
PATH_PATTERN = rf"^{_FIELD}(=[A-Za-z0-9_.:/-]{{1,64}}\*?)?$"
#: the same without a value
LIMIT_PATTERN = rf"^{_FIELD}$"

_PATH = re.compile(PATH_PATTERN)


@attrs.frozen
class FieldPath:
    """The place of a field in a body.

    Attributes:
        text: the path as it is written.
        names: its names from the top level on; ``*`` is any member. Lists do not count: a name means each item's.
        value: the value that is meant, with a last ``*`` as wildcard; None means any.
    """

    text: str
    names: tuple[str, ...]
    value: str | None = None


@lru_cache(maxsize=4096)
def parse_path(text: str) -> FieldPath:
    """Read a path such as ``priority``, ``sampling_params.extra_args``, ``messages.*.name`` or ``tools.type=mcp``.

    Raises:
        ValueError: it is none; the message says what to write.
    """
    if re.match(r"model(?:[.=]|\Z)", text) is not None:
        raise ValueError("must not be the model: what a key may use is set in models")
    if _PATH.fullmatch(text) is None:
        raise ValueError(
            "must be the name of a field, or a path such as sampling_params.extra_args or tools.type=mcp, with at "
            f"most {MAX_DEPTH} names"
        )
    path, _, value = text.partition("=")
    names = tuple(path.split("."))
    return FieldPath(text, names, value or None)


def parse_limited(text: str) -> FieldPath:
    """Read the path of a limit: a limit is for a field, whatever its value.

    Raises:
        ValueError: it is none; the message says what to write.
    """
    path = parse_path(text)
    if path.value is not None:
        raise ValueError(f"must be a field without a value, such as {'.'.join(path.names)}")
    return path


def covers(allowed: str, text: str) -> bool:
    """Return whether allowing one path allows another: the same, or one below it."""
    return allowed in (EVERYTHING, text) or text.startswith((f"{allowed}.", f"{allowed}="))


@attrs.frozen
class FieldRules:
    """What one level says about fields: a key, a team, or the gateway.

    Attributes:
        allowed: paths that it frees of what the gateway forbids and limits.
        forbidden: paths that it forbids.
        limits: paths and their limits, in the order of the paths.
    """

    allowed: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    limits: tuple[tuple[str, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.allowed or self.forbidden or self.limits)


NO_RULES = FieldRules()


@lru_cache(maxsize=1024)
def _interned(allowed: tuple[str, ...], forbidden: tuple[str, ...], limits: tuple[tuple[str, int], ...]) -> FieldRules:
    return FieldRules(allowed, forbidden, limits)


def rules_of(
    forbidden: Sequence[str] = (), limits: Mapping[str, int] | None = None, allowed: Sequence[str] = ()
) -> FieldRules:
    """Return rules; equal ones share one object."""
    if not forbidden and not limits and not allowed:
        return NO_RULES
    return _interned(tuple(allowed), tuple(forbidden), tuple(sorted((limits or {}).items())))


def rules_from(stored: Mapping[str, Any]) -> FieldRules:
    """Return rules as a database keeps them: an object with ``allowed``, ``forbidden`` and ``limits``."""
    return rules_of(stored.get("forbidden", ()), stored.get("limits"), stored.get("allowed", ()))


#: what the gateway forbids to virtual keys by default, and why
DEFAULT_FORBIDDEN: Mapping[str, str] = {
    "priority": "it jumps the queue of the server",
    "request_id": "the gateway names each request",
    "session_id": "it steers requests to a certain engine, as the header X-Session-ID does",
    "kv_transfer_params": "it moves KV caches between servers, and reads those of others",
    "ec_transfer_params": "it moves encoder caches between servers, and reads those of others",
    "vllm_xargs": "it passes arguments to the server's extensions",
    "stream_interval": "it hides tokens of a stream from the count",
    "chat_template": "the server would run it",
    "chat_template_kwargs.chat_template": "the server would run it",
    "mm_processor_kwargs": "it sets how much memory and time media take",
    "media_io_kwargs": "it sets how much memory and time media take",
    "mm_payload": "it returns the tensors of media",
    "return_mm_kwargs": "it returns the tensors of media",
    "prompt_embeds": "the server would load a tensor, and no prompt could be counted",
    "logits_processors": "older servers run the function that it names",
    "data": "it goes unread to a plug-in of the server, which may open URLs and files",
    "sampling_params.extra_args": "it passes arguments to the server's extensions",
    "sampling_params.stream_interval": "it hides tokens of a stream from the count",
}

#: what the gateway forbids by default where vLLM runs tools by itself: /v1/responses. For ``web_search``, which clients
#: send unasked, it runs none.
SERVER_TOOLS: Mapping[str, str] = {
    f"tools.type={name}": "the server would run this tool itself"
    for name in ("mcp", "code_interpreter", "web_search_preview", "container")
}

#: the default limits of virtual keys; no client of OpenAI's needs more
DEFAULT_LIMITS: Mapping[str, int] = {
    "n": 128,
    "best_of": 128,
    "prompt_logprobs": 20,
    "logit_bias": 1024,
    "response_format": 131_072,
    "text": 131_072,
    "output_config": 131_072,
    "structured_outputs": 65_536,
    "sampling_params.n": 128,
    "sampling_params.prompt_logprobs": 20,
}

#: fields that limit a number; text in them is read as a number
NUMBERS = frozenset(
    (
        *("n", "best_of", "logprobs", "top_logprobs", "prompt_logprobs", "min_tokens", "thinking_token_budget"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tool_calls", "dimensions", "top_k", "k"),
        *("truncate_prompt_tokens", "max_tokens_per_query", "max_tokens_per_doc", "output_dimension", "seed"),
        *("temperature", "top_p", "p", "min_p", "length_penalty", "repetition_penalty", "top_n", "priority"),
        *("presence_penalty", "frequency_penalty", "stream_interval", "budget_tokens", "routed_experts_prompt_start"),
    )
)

#: numbers among them where a negative one means "all"
NEGATIVE_IS_ALL = frozenset(("logprobs", "top_logprobs", "prompt_logprobs", "thinking_token_budget"))

#: fields whose size is that of their JSON text in bytes
SCHEMAS = frozenset(("structured_outputs", "response_format", "text", "output_config", "metadata"))

#: fields that one limit covers: the names that the routes have for it
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens", "sampling_params.max_tokens"),
    "stop": ("stop", "stop_sequences", "sampling_params.stop"),
}

#: the values that ask for nothing, besides null
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "priority": (0,),
    "session_id": ("",),
    "kv_transfer_params": ({},),
    "ec_transfer_params": ({},),
    "vllm_xargs": ({},),
    "stream_interval": (1,),
    "chat_template": ("",),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "mm_payload": ("none",),
    "return_mm_kwargs": (False,),
    "extra_args": ({},),
    "background": (False,),
    "store": (False,),
    "stream": (False,),
    "echo": (False,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "logprobs": (False,),
    "tools": ([],),
    "logit_bias": ({},),
    "stop": ([], ""),
    "n": (1,),
    "best_of": (1,),
}


def is_harmless(name: str, value: Any) -> bool:
    """Return whether a field asks for nothing: its value is null, or what vLLM takes by default.

    ``true`` is not 1, and ``false`` is not 0; a text is not read as a number.
    """
    return value is None or any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in HARMLESS.get(name, ())
    )
