"""Where vLLM's routes have prompts, and how their answers are put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted_vllm.observability.contents.folding import ANY, CHUNKS, COHERE, MESSAGES, RESPONSES, RESULT, Format

#: the format of each route with a prompt or an answer of a model, by its row in `twisted_vllm.api_routes`
FORMATS: Mapping[str, Format] = {
    **dict.fromkeys(
        (
            *("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions"),
            *("/v1/audio/transcriptions", "/v1/audio/translations"),
        ),
        CHUNKS,
    ),
    **dict.fromkeys(("/v1/responses", "/v1/responses/{id}"), RESPONSES),
    "/v1/messages": MESSAGES,
    "/cohere/v2/chat": COHERE,
    "/invocations": ANY,
    **dict.fromkeys(
        (
            *("/v1/messages/count_tokens", "/v1/embeddings", "/v2/embed", "/score", "/v1/score", "/rerank"),
            *("/v1/rerank", "/v2/rerank", "/classify", "/pooling", "/generative_scoring", "/v1/systemone"),
            *("/tokenize", "/detokenize", "/inference/v1/generate"),
        ),
        RESULT,
    ),
}

#: members of a body that are the prompt by themselves
ALONE = ("messages", "prompt", "input")
#: members that stand before the prompt, as what the system says
BEFORE = ("system", "instructions")
#: further members that belong to the prompt
PARTS = (
    *("texts", "text", "query", "queries", "documents", "items", "data", "data_1", "data_2", "text_1", "text_2"),
    *(
        "instruction",
        "instructions",
        "state",
        "questions",
        "suffix",
        "token_ids",
        "tokens",
        "images",
        "audio",
        "videos",
    ),
    "prompt_embeds",
)
#: members that are told apart: what the model may call, and how it shall answer
TOOLS = ("tools", "functions")


def input_of(body: Mapping[str, Any]) -> Any:
    """Return the prompt of a body: messages, a text, or its parts by name; None without one."""
    alone = [name for name in ALONE if body.get(name) is not None]
    if len(alone) == 1:
        found = body[alone[0]]
        before = [body[name] for name in BEFORE if body.get(name)]
        if before and (isinstance(found, str) or _are_messages(found)):
            messages = [{"role": "user", "content": found}] if isinstance(found, str) else found
            return [*({"role": "system", "content": text} for text in before), *messages]
        return found
    parts = {name: body[name] for name in (*ALONE, *PARTS) if body.get(name) is not None}
    return parts or None


def _are_messages(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(each, dict) for each in found)


#: members that are no parameters: the prompt, or said elsewhere
_NO_PARAMETERS = frozenset((*ALONE, *BEFORE, *PARTS, *TOOLS, "model", "no-log", "user", "cache_salt", "request_id"))


def parameters_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a body: its other members."""
    return {name: value for name, value in body.items() if name not in _NO_PARAMETERS and value is not None}
