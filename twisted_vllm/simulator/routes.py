"""Which route answers what; what no route answers gets vLLM's 401, 404, 405 or redirect."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from twisted_vllm.simulator import anthropic_api, audio, openai_api, operations, pooling, responses, tokens
from twisted_vllm.simulator.engine import VERSION, Engine
from twisted_vllm.simulator.refusals import FrameworkRefusal, Redirect, Refusal
from twisted_vllm.simulator.replies import JSON, Answer, Call, Reply, json_answer

Handler = Callable[[Call, Engine], Reply]

#: where vLLM asks for its API key (``vllm/entrypoints/serve/middleware/authenticate.py``): nowhere else
GUARDED_PREFIXES = ("/v1", "/v2", "/inference", "/cohere")

_ANTHROPIC_PREFIX = "/v1/messages"
_STORED_PREFIX = "/v1/responses/"


def openapi(call: Call, engine: Engine) -> Reply:
    """Answer ``GET /openapi.json`` with the routes and nothing about their bodies."""
    description = {"responses": {"200": {"description": "Successful Response"}}}
    paths = {path: {method.lower(): description for method in methods} for path, methods in ROUTES.items()}
    info = {"title": "twisted-vllm-simulator", "version": VERSION}
    return json_answer({"openapi": "3.1.0", "info": info, "paths": paths})


ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": operations.health},
    "/ping": {"GET": operations.health, "POST": operations.health},
    "/version": {"GET": operations.version},
    "/load": {"GET": operations.load},
    "/metrics": {"GET": operations.metrics},
    "/openapi.json": {"GET": openapi},
    "/v1/models": {"GET": operations.models},
    "/v1/chat/completions": {"POST": openai_api.chat_completions},
    "/v1/completions": {"POST": openai_api.completions},
    "/v1/responses": {"POST": responses.responses},
    "/v1/messages": {"POST": anthropic_api.messages},
    "/v1/messages/count_tokens": {"POST": anthropic_api.count_message_tokens},
    "/v1/embeddings": {"POST": pooling.embeddings},
    "/score": {"POST": pooling.score},
    "/v1/score": {"POST": pooling.score},
    "/rerank": {"POST": pooling.rerank},
    "/v1/rerank": {"POST": pooling.rerank},
    "/v2/rerank": {"POST": pooling.rerank},
    "/classify": {"POST": pooling.classify},
    "/pooling": {"POST": pooling.pooling},
    "/tokenize": {"POST": tokens.tokenize},
    "/detokenize": {"POST": tokens.detokenize},
    "/v1/audio/transcriptions": {"POST": audio.transcriptions},
    # vLLM has these in development mode; here they are always on, to show that a gateway guards them
    "/sleep": {"POST": operations.sleep},
    "/wake_up": {"POST": operations.wake_up},
    "/is_sleeping": {"GET": operations.is_sleeping},
}


def answer(call: Call, engine: Engine) -> Reply:
    """Answer one request, errors included."""
    try:
        _authenticate(call, engine)
        return _handler_of(call)(call, engine)
    except Refusal as refusal:
        return refused(call, refusal)


def may_call(call: Call, engine: Engine) -> bool:
    """Tell whether a request has the key that is asked for."""
    try:
        _authenticate(call, engine)
    except Refusal:
        return False
    return True


def refused(call: Call, refusal: Refusal) -> Answer:
    """Return the answer that a refusal is."""
    body = refusal.body(anthropic=call.path.startswith(_ANTHROPIC_PREFIX))
    return Answer(body, refusal.status, JSON if body else None, refusal.headers)


def _authenticate(call: Call, engine: Engine) -> None:
    key = engine.settings.api_key
    if key is None or call.method == "OPTIONS" or not call.path.startswith(GUARDED_PREFIXES):
        return
    scheme, _, given = call.header("authorization").partition(" ")
    expected = key.reveal().encode(errors="surrogateescape")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(errors="surrogateescape"), expected):
        raise FrameworkRefusal(401, key="error")


def _handler_of(call: Call) -> Handler:
    methods = _methods_of(call.path)
    if methods is None:
        shorter = call.path.removesuffix("/")
        if shorter != call.path and _methods_of(shorter) is not None:
            location = f"http://{call.header('host')}{shorter}".encode(errors="surrogateescape")
            raise Redirect(location)
        raise FrameworkRefusal(404)
    handler = methods.get(call.method)
    if handler is None:
        raise FrameworkRefusal(405, headers=((b"allow", ", ".join(methods).encode("ascii")),))
    return handler


def _methods_of(path: str) -> dict[str, Handler] | None:
    found = ROUTES.get(path)
    if found is None and path.startswith(_STORED_PREFIX):
        rest = path.removeprefix(_STORED_PREFIX)
        name, slash, last = rest.partition("/")
        if name and not slash:
            return {"GET": responses.stored_response}
        if name and last == "cancel":
            return {"POST": responses.stored_response}
        return None
    return found
