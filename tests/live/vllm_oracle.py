"""What vLLM reads from a body: vLLM's own routers, request models and serving code, without an engine.

usage: vllm_oracle.py, with vLLM's own Python. Each line on stdin is a list of jobs in JSON, each ``[route, content
type, body in base64, server]``; each line on stdout is the list of what vLLM reads, null where it refuses the body, and
an object with ``crash`` where it fails. ``server`` says what the server runs ("generate", "embed", "classify" or
"score"), on which only ``/invocations`` depends. The first line on stdout lists the routes.

The requests run through FastAPI as in vLLM's server, up to the call of the engine. In place of engine, tokenizer and
model stands what accepts everything, so a body that a real server might refuse later counts as accepted.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, NoReturn

os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
os.environ["VLLM_ENABLE_RESPONSES_API_STORE"] = "1"

from fastapi import FastAPI, Response
from pydantic import ValidationError
from vllm.entrypoints.anthropic import api_router as anthropic_routes
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.generate.generative_scoring.api_router import register_generative_scoring_api_router
from vllm.entrypoints.generate.structured_decisions.api_router import register_structured_decisions_api_router
from vllm.entrypoints.openai.chat_completion import api_router as chat_routes
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion import api_router as completion_routes
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses import api_router as responses_routes
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.pooling.classify.api_router import router as classify_router
from vllm.entrypoints.pooling.embed.api_router import router as embed_router
from vllm.entrypoints.pooling.embed.protocol import CohereEmbedRequest
from vllm.entrypoints.pooling.pooling.api_router import router as pooling_router
from vllm.entrypoints.pooling.scoring.api_router import router as scoring_router
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoringRequestMixin
from vllm.entrypoints.pooling.scoring.utils import validate_score_input
from vllm.entrypoints.scale_out.token_in_token_out import api_router as generate_routes
from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens
from vllm.entrypoints.serve.sagemaker import api_router as sagemaker_routes
from vllm.entrypoints.serve.tokenize import api_router as tokenize_routes
from vllm.entrypoints.speech_to_text.transcription import api_router as transcription_routes
from vllm.entrypoints.speech_to_text.transcription.serving import OpenAIServingTranscription
from vllm.entrypoints.speech_to_text.translation import api_router as translation_routes
from vllm.entrypoints.speech_to_text.translation.serving import OpenAIServingTranslation
from vllm.exceptions import VLLMValidationError
from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import BeamSearchParams, RequestOutputKind

#: the model's length in tokens: more than any model has, so that it limits nothing that a server would accept
LONGEST = 10_000_000
_PROMPT = [1]
SERVERS = ("generate", "embed", "classify", "score")


class Reached(BaseException):
    """vLLM would start the engine. No `Exception`, because vLLM turns those into answers."""


class Recorder:
    """What the request in progress asked for."""

    def __init__(self) -> None:
        self.request: Any = None
        self.model: str | None = None
        self.sequences: list[tuple[int, int | None]] = []
        self.priority: int | None = None
        self.prompts = 0
        self.repeated = 0
        self.in_pieces = False

    def reset(self) -> None:
        self.request, self.sequences, self.priority = None, [], None
        self.prompts = self.repeated = 0
        self.in_pieces = False

    def keep(self, request: Any) -> None:
        """Keep the request, and its model: vLLM may fill that in later."""
        self.request, self.model = request, request.model

    def start(self, params: Any, priority: int = 0) -> None:
        """Record the generation for one prompt."""
        count = params.beam_width if isinstance(params, BeamSearchParams) else params.n
        most = params.max_tokens
        self.sequences.append((count, None if most is None or most >= LONGEST - len(_PROMPT) else most))
        self.in_pieces = getattr(params, "output_kind", None) is RequestOutputKind.DELTA
        self.priority = priority
        self.prompts += 1

    def reading(self) -> dict[str, Any]:
        # the declared fields alone, not what the body has beside them
        fields = vars(self.request)
        options = fields.get("stream_options")
        limits = [most for _, most in self.sequences if most is not None]
        unlimited = len(limits) < len(self.sequences)
        return {
            "type": type(self.request).__name__,
            "model": self.model,
            "stream": bool(fields.get("stream")),
            "include_usage": bool(options.include_usage if options else fields.get("stream_include_usage")),
            "sequences": sum(count for count, _ in self.sequences),
            # of one sequence; None if the request sets no limit
            "most_tokens": None if unlimited else max(limits, default=0),
            "prompts": self.prompts,
            # characters that the prompts have in common, each time but the first
            "repeated": self.repeated,
            "padded": fields.get("padding") == "max_length",
            "in_pieces": self.in_pieces,
            "priority": fields.get("priority") if self.priority is None else self.priority,
            **{name: fields.get(name) for name in _TOLD},
        }


#: fields of a request that are told as they are
_TOLD = ("cache_salt", "user", "previous_response_id", "background", "store", "request_id", "session_id")
RECORDER = Recorder()


async def _unanswered() -> AsyncIterator[Any]:
    raise Reached
    yield


def _reached(*_: object, **__: object) -> NoReturn:
    raise Reached


async def _keep(request: Any) -> None:
    RECORDER.keep(request)


def _generate(
    prompt: object, sampling_params: object, request_id: object, *, priority: int = 0, **_: object
) -> AsyncIterator[Any]:
    RECORDER.start(sampling_params, priority)
    return _unanswered()


def _beam_search(*, params: object, **_: object) -> AsyncIterator[Any]:
    RECORDER.start(params)
    return _unanswered()


def _start_response(*, sampling_params: object, priority: int = 0, **_: object) -> NoReturn:
    RECORDER.start(sampling_params, priority)
    raise Reached


def _engine_input(extras: Any = None) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": _PROMPT, **(extras or {})}


async def _render_chat(request: Any, **_: object) -> tuple[list[Any], list[dict[str, Any]]]:
    request.build_tok_params(MODEL)
    return [], [_engine_input()]


async def _preprocess_chat(request: Any, *_: object, **__: object) -> tuple[list[Any], list[dict[str, Any]]]:
    return await _render_chat(request)


async def _render_responses(request: Any, **_: object) -> Any:
    request.build_tok_params(MODEL)
    return SimpleNamespace(messages=[], engine_input=_engine_input())


async def _render_prompts(prompts: list[Any], *_: object, **__: object) -> list[dict[str, Any]]:
    return [_engine_input() for _ in prompts]


async def _hear(**_: object) -> tuple[list[Any], float, list[float]]:
    return [_engine_input()], 1.0, [0.0]


class _Store(dict[str, Any]):
    """Has everything that is asked for, and keeps nothing."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make

    def get(self, key: str, default: Any = None) -> Any:
        return self._make(key)

    def __setitem__(self, key: str, value: Any) -> None:
        pass


MODEL = SimpleNamespace(
    max_model_len=LONGEST,
    is_encoder_decoder=False,
    is_multimodal_model=True,
    model="model",
    hf_config=SimpleNamespace(model_type="none"),
    get_vocab_size=lambda: LONGEST,
)
_MODELS = SimpleNamespace(
    model_name=lambda lora=None: "served",
    lora_requests={},
    base_model_paths=[SimpleNamespace(name="served")],
    is_base_model=lambda name: True,
)
_TOKENIZER = SimpleNamespace()
_RENDERER = SimpleNamespace(
    tokenizer=_TOKENIZER,
    get_tokenizer=lambda: _TOKENIZER,
    render_cmpl_async=_render_prompts,
    mm_processor_cache=None,
)
_ENGINE = SimpleNamespace(
    errored=False,
    check_admission=lambda n: None,
    generate=_generate,
    model_config=MODEL,
    renderer=_RENDERER,
    vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=LONGEST)),
)


def _without_init(kind: type[Any], **attributes: object) -> Any:
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


_ONLINE = _without_init(
    OnlineRenderer,
    renderer=_RENDERER,
    model_config=MODEL,
    trust_request_mm_kwargs=True,
    trust_request_chat_template=True,
    use_harmony=False,
    parser=None,
    chat_template=None,
    chat_template_content_format="auto",
    default_chat_template_kwargs={},
    render_chat=_render_chat,
    preprocess_chat=_preprocess_chat,
    render_responses=_render_responses,
)


def _serving(kind: type[Any], **attributes: object) -> Any:
    """Make vLLM's serving object of a route, with everything behind it replaced."""
    streams = (
        "chat_completion_stream_generator",
        "completion_stream_generator",
        "transcription_stream_generator",
        "translation_stream_generator",
        "serve_tokens_stream_generator",
        "message_stream_converter",
    )
    return _without_init(
        kind,
        models=_MODELS,
        model_config=MODEL,
        request_logger=None,
        engine_client=_ENGINE,
        renderer=_RENDERER,
        online_renderer=_ONLINE,
        has_kv_connector=False,
        default_sampling_params={},
        override_max_tokens=None,
        chat_template=None,
        chat_template_content_format="auto",
        default_chat_template_kwargs={},
        chat_template_kwargs={},
        parser_cls=None,
        parser=None,
        tool_server=None,
        use_harmony=False,
        enable_store=True,
        response_store=_Store(lambda key: SimpleNamespace(id=key, output=[])),
        response_store_lock=asyncio.Lock(),
        msg_store=_Store(lambda key: []),
        force_no_detokenize=False,
        enable_prompt_tokens_details=False,
        system_fingerprint=None,
        has_tokenizer=True,
        _merge_inline_system=False,
        _disabled_thinking_effort="none",
        asr_config=SimpleNamespace(max_audio_clip_s=30.0),
        _check_model=_keep,
        _maybe_get_adapters=lambda *_, **__: None,
        beam_search=_beam_search,
        _generate_with_builtin_tools=_start_response,
        _preprocess_speech_to_text=_hear,
        **dict.fromkeys(streams, _reached),
        **attributes,
    )


def _share(prompts: int, *texts: object) -> None:
    """Record prompts that have texts in common."""
    RECORDER.prompts = prompts
    written = [text if isinstance(text, str) else json.dumps(text) for text in texts if text is not None]
    RECORDER.repeated = (prompts - 1) * sum(map(len, written))


async def _pool(request: Any, raw_request: Any) -> Response:
    """Count the inputs of a pooling route."""
    RECORDER.keep(request)
    if isinstance(request, CohereEmbedRequest):
        RECORDER.prompts = len(request.texts or request.images or request.inputs)
    elif isinstance(request, ScoringRequestMixin):
        pair = (
            (request.query, request.documents)
            if isinstance(request, RerankRequest)
            else (request.data_1, request.data_2)
        )
        data = validate_score_input(*pair, is_multimodal_model=True, architecture="")
        _share(len(data.data_2), *(data.data_1 if len(data.data_1) == 1 else ()), request.instruction)
    # the declared fields: both may be among the others, as anything
    elif "messages" in vars(request):
        RECORDER.prompts = len(conversation_to_seq(request.messages))
    elif "input" in vars(request):
        RECORDER.prompts = len(prompt_to_seq(request.input))
    raise Reached


async def _score(request: Any, raw_request: Any) -> None:
    RECORDER.keep(request)
    _share(len(request.items), request.query)
    RECORDER.sequences = [(1, 1)] * len(request.items)
    raise Reached


async def _decide(request: Any, raw_request: Any) -> None:
    RECORDER.keep(request)
    media = [*(request.images or ()), *(request.audio or ()), *(request.videos or ())]
    _share(len(request.questions), request.state, request.instructions, *media)
    RECORDER.sequences = [(1, 1)] * len(request.questions)
    raise Reached


def _refuse(message: str) -> NoReturn:
    raise VLLMValidationError(message)


async def _no_engine(request: Any, raw_request: Any) -> None:
    RECORDER.keep(request)
    raise Reached


def _state(app: Any, pooling: bool) -> None:
    state = app.state
    state.args = SimpleNamespace(tokens_only=False, enable_tokenizer_info_endpoint=False)
    state.openai_serving_chat = None if pooling else _serving(OpenAIServingChat)
    state.openai_serving_chat_batch = None if pooling else _serving(OpenAIServingChatBatch)
    state.openai_serving_completion = None if pooling else _serving(OpenAIServingCompletion)
    state.openai_serving_responses = _serving(OpenAIServingResponses)
    messages = _serving(AnthropicServingMessages)
    messages.count_tokens = _no_engine
    state.anthropic_serving_messages = messages
    state.serving_tokens = _serving(ServingTokens)
    heard = SimpleNamespace(
        supports_segment_timestamp=True, supports_diarized_transcription=True, no_space_languages=()
    )
    state.openai_serving_transcription = _serving(OpenAIServingTranscription, model_cls=heard, task_type="transcribe")
    state.openai_serving_translation = _serving(OpenAIServingTranslation, model_cls=heard, task_type="translate")
    state.serving_generative_scoring = SimpleNamespace(create_generative_scoring=_score)
    state.serving_structured_decisions = SimpleNamespace(create_decision=_decide)
    state.serving_tokenization = SimpleNamespace(
        create_tokenize=_no_engine, create_detokenize=_no_engine, create_error_response=_refuse
    )
    for name in ("embedding", "classification", "scores", "pooling"):
        setattr(state, f"serving_{name}", _pool)
    state.openai_serving_models = _MODELS


def _app(server: str) -> Any:
    app = FastAPI(openapi_url=None)
    _state(app, server != "generate")
    if server == "generate":
        for routes in (
            chat_routes,
            completion_routes,
            responses_routes,
            anthropic_routes,
            generate_routes,
            tokenize_routes,
        ):
            routes.attach_router(app)
        for router in (
            transcription_routes.router,
            translation_routes.router,
            embed_router,
            classify_router,
            scoring_router,
            pooling_router,
        ):
            app.include_router(router)
        register_generative_scoring_api_router(app)
        register_structured_decisions_api_router(app)
        _attach_cohere(app)
    tasks = {"generate": ("generate",), "embed": ("embed",), "classify": ("classify",), "score": ("classify",)}[server]
    config = SimpleNamespace(
        get_pooling_task=lambda tasks: None if server == "generate" else tasks[0],
        score_type="cross-encoder",
        hf_config=SimpleNamespace(num_labels=1 if server == "score" else 2),
        num_labels=1 if server == "score" else 2,
    )
    sagemaker_routes.attach_router(app, tasks, config)
    return app


def _attach_cohere(app: Any) -> None:
    """Add Cohere's chat, if the package cohere is there."""
    try:
        from vllm.entrypoints.cohere import api_router
        from vllm.entrypoints.cohere.serving import CohereServingChatV2
    except ImportError:
        return
    app.include_router(api_router.router)
    app.state.cohere_serving_chat_v2 = _serving(CohereServingChatV2)


async def read(app: Any, route: str, content_type: str, body: bytes) -> dict[str, Any] | None:
    """Return what vLLM reads from a body; None if it refuses it."""
    RECORDER.reset()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: object) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": route,
        "raw_path": route.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", content_type.encode("latin-1")), (b"content-length", b"%d" % len(body))],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    try:
        await app(scope, receive, send)
    except Reached:
        return RECORDER.reading()
    except (VLLMValidationError, ValidationError):
        # vLLM's server answers 400
        return None
    except Exception as problem:
        # it answers 500
        return {"crash": f"{type(problem).__name__}: {problem}"[:200]}
    return None


async def main() -> None:
    logging.disable(logging.CRITICAL)
    apps = {server: _app(server) for server in SERVERS}
    paths = sorted({route.path for app in apps.values() for route in app.routes})
    print(json.dumps(paths), flush=True)
    for line in sys.stdin:
        answers = []
        for route, content_type, body, server in json.loads(line):
            answers.append(await read(apps[server], route, content_type, base64.b64decode(body)))
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
