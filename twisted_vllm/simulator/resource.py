"""The simulator as a resource of twisted.web.

It behaves like vLLM 0.32.0, and says that it is a simulator: in the header ``server: twisted-vllm-simulator``, in
``/version``, and in every text that it writes. The header ``x-simulate`` makes it fail: see
``twisted_vllm.simulator.faults``.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from urllib.parse import parse_qs, unquote

from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from twisted_vllm.simulator.apis import anthropic, audio, openai, operations, pooling, responses
from twisted_vllm.simulator.engine import VERSION, Engine
from twisted_vllm.simulator.faults import HEADER, NO_FAULTS, Ending, Faults, parse_faults
from twisted_vllm.simulator.messages import (
    JSON,
    ApiError,
    ApiRequest,
    ApiResponse,
    FrameworkError,
    Redirect,
    Response,
    json_response,
    simulated_failure,
)
from twisted_vllm.simulator.sender import ResponseSender
from twisted_vllm.simulator.settings import SimulatorSettings

Handler = Callable[[ApiRequest, Engine], Response]

#: where vLLM asks for its API key (``vllm/entrypoints/serve/middleware/authenticate.py``)
GUARDED_PREFIXES = ("/v1", "/v2", "/inference", "/cohere")

_ANTHROPIC_PREFIX = "/v1/messages"
_STORED_PREFIX = "/v1/responses/"


def make_resource(settings: SimulatorSettings, clock: IReactorTime) -> SimulatorResource:
    """Make a simulated server.

    Args:
        settings: what to simulate.
        clock: tells the time and schedules calls; a ``Clock`` in tests.

    Returns:
        A leaf resource, to be the root of a ``Site`` or of ``treq.testing.RequestTraversalAgent``.
    """
    return SimulatorResource(Engine(settings, clock.seconds), clock)


@implementer(IResource)
class SimulatorResource:
    """Answers every path.

    Attributes:
        engine: the state of the simulated server.
    """

    isLeaf = True

    def __init__(self, engine: Engine, clock: IReactorTime) -> None:
        self.engine = engine
        self._clock = clock
        self._realtime = audio.RealtimeSessions(engine, clock)

    def getChildWithDefault(self, name: bytes, request: IRequest) -> IResource:
        """Return itself, as it has no children."""
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse: a leaf has no children.

        Raises:
            TypeError: always.
        """
        raise TypeError("the simulator answers every path below it: put it beside, not above, another resource")

    def render(self, request: Request) -> bytes | int:
        """Begin to answer a request."""
        api_request = _read_request(request)
        if audio.asks_for_websocket(request) and may_call(api_request, self.engine):
            return self._realtime.resource.render_GET(request)
        response, faults = self._decide(api_request)
        ResponseSender(self._clock, self.engine, request, response, faults).start()
        return NOT_DONE_YET

    def _decide(self, request: ApiRequest) -> tuple[Response, Faults]:
        faults = NO_FAULTS
        try:
            faults = parse_faults(request.header(HEADER))
            if faults.status is not None:
                raise simulated_failure(faults.status)
        except ApiError as error:
            return error_response(request, error), faults
        response = respond(request, self.engine)
        if faults.ending is Ending.ERROR_EVENT and isinstance(response, ApiResponse):
            failure = ApiError("Internal server error", status=500, type="InternalServerError")
            response = error_response(request, failure)
        return response, faults


def openapi(request: ApiRequest, engine: Engine) -> Response:
    """Answer ``GET /openapi.json`` with the routes, and nothing about their bodies."""
    description = {"responses": {"200": {"description": "Successful Response"}}}
    paths = {path: {method.lower(): description for method in methods} for path, methods in ROUTES.items()}
    info = {"title": "twisted-vllm-simulator", "version": VERSION}
    return json_response({"openapi": "3.1.0", "info": info, "paths": paths})


ROUTES: dict[str, dict[str, Handler]] = {
    "/health": {"GET": operations.health},
    "/ping": {"GET": operations.health, "POST": operations.health},
    "/version": {"GET": operations.version},
    "/load": {"GET": operations.load},
    "/metrics": {"GET": operations.metrics},
    "/openapi.json": {"GET": openapi},
    "/v1/models": {"GET": operations.models},
    "/v1/chat/completions": {"POST": openai.chat_completions},
    "/v1/completions": {"POST": openai.completions},
    "/v1/responses": {"POST": responses.responses},
    "/v1/messages": {"POST": anthropic.messages},
    "/v1/messages/count_tokens": {"POST": anthropic.count_message_tokens},
    "/v1/embeddings": {"POST": pooling.embeddings},
    "/score": {"POST": pooling.score},
    "/v1/score": {"POST": pooling.score},
    "/rerank": {"POST": pooling.rerank},
    "/v1/rerank": {"POST": pooling.rerank},
    "/v2/rerank": {"POST": pooling.rerank},
    "/classify": {"POST": pooling.classify},
    "/pooling": {"POST": pooling.pooling},
    "/tokenize": {"POST": operations.tokenize},
    "/detokenize": {"POST": operations.detokenize},
    "/v1/audio/transcriptions": {"POST": audio.transcriptions},
    # vLLM has these only in development mode. Here they are always on, to show that a gateway guards them.
    "/sleep": {"POST": operations.sleep},
    "/wake_up": {"POST": operations.wake_up},
    "/is_sleeping": {"GET": operations.is_sleeping},
    "/reset_prefix_cache": {"POST": operations.reset_prefix_cache},
}


def respond(request: ApiRequest, engine: Engine) -> Response:
    """Return the response to a request, errors included."""
    try:
        _authenticate(request, engine)
        return _handler_of(request)(request, engine)
    except ApiError as error:
        return error_response(request, error)


def may_call(request: ApiRequest, engine: Engine) -> bool:
    """Return whether a request has the server's API key, or needs none."""
    try:
        _authenticate(request, engine)
    except ApiError:
        return False
    return True


def error_response(request: ApiRequest, error: ApiError) -> ApiResponse:
    """Return the response for an error."""
    body = error.body(anthropic=request.path.startswith(_ANTHROPIC_PREFIX))
    return ApiResponse(body, error.status, JSON if body else None, error.headers)


def _authenticate(request: ApiRequest, engine: Engine) -> None:
    key = engine.settings.api_key
    if key is None or request.method == "OPTIONS" or not request.path.startswith(GUARDED_PREFIXES):
        return
    scheme, _, given = request.header("authorization").partition(" ")
    expected = key.reveal().encode(errors="surrogateescape")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(errors="surrogateescape"), expected):
        raise FrameworkError(401, key="error")


def _handler_of(request: ApiRequest) -> Handler:
    methods = _methods_of(request.path)
    if methods is None:
        shorter = request.path.removesuffix("/")
        if shorter != request.path and _methods_of(shorter) is not None:
            location = f"http://{request.header('host')}{shorter}".encode(errors="surrogateescape")
            raise Redirect(location)
        raise FrameworkError(404)
    handler = methods.get(request.method)
    if handler is None:
        raise FrameworkError(405, headers=((b"allow", ", ".join(methods).encode("ascii")),))
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


def _read_request(request: Request) -> ApiRequest:
    # The raw target, as twisted.web parses request.path and request.args in its own way.
    path, _, query = request.uri.decode("latin-1").partition("?")
    headers = request.requestHeaders

    def header(name: str) -> str:
        values = headers.getRawHeaders(name, [])
        return values[0] if values else ""

    content = request.content
    # twisted.web gives each request that it renders a body, which may be empty.
    assert content is not None
    content.seek(0)
    return ApiRequest(
        method=request.method.decode("latin-1"),
        path=unquote(path),
        query=parse_qs(query, keep_blank_values=True),
        header=header,
        body=content.read(),
    )
