"""Requests, responses and errors, in the shapes of vLLM 0.32.0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus

import attrs
import msgspec

Header = tuple[bytes, bytes]

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

#: the last event of a stream on OpenAI's older routes
DONE = b"data: [DONE]\n\n"


@attrs.frozen
class ApiRequest:
    """A request.

    Attributes:
        method: the HTTP method.
        path: the path, percent-decoded.
        query: the query's fields.
        header: returns a header by its lower-case name, or an empty string.
        body: the whole body.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    header: Callable[[str], str]
    body: bytes


@attrs.frozen
class Work:
    """What the engine does for a response.

    Attributes:
        model: the model.
        prompt_tokens: the tokens of the prompt.
        completion_tokens: the tokens of all choices.
        steps: the steps of the engine: the tokens of the longest choice, 0 for a pooling route.
        finish_reason: ``stop`` or ``length``.
    """

    model: str
    prompt_tokens: int
    completion_tokens: int = 0
    steps: int = 0
    finish_reason: str = "stop"


@attrs.frozen
class ApiResponse:
    """A response that is sent whole.

    Attributes:
        body: the body.
        status: the HTTP status.
        content_type: the ``Content-Type``; ``None`` sends none.
        headers: the other headers.
        work: what the engine does for it; ``None`` takes no time.
    """

    body: bytes = b""
    status: int = 200
    content_type: bytes | None = JSON
    headers: tuple[Header, ...] = ()
    work: Work | None = None


#: the event for a failure of vLLM's engine, on OpenAI's routes
FAILURE = (
    b'data: {"error":{"message":"Internal server error","type":"InternalServerError","param":null,"code":500}}\n\n'
)


@attrs.frozen
class EventStream:
    """A response of server-sent events.

    Attributes:
        opening: the events before the first token.
        events: the events of each step of the engine, ``work.steps`` in all.
        closing: the events after the last token.
        work: what the engine does for it.
        failure: the events in place of `closing` if the engine fails.
    """

    opening: bytes
    events: Iterator[bytes]
    closing: bytes
    work: Work
    failure: bytes = FAILURE + DONE


Response = ApiResponse | EventStream


def json_response(value: object, *, status: int = 200, work: Work | None = None) -> ApiResponse:
    """Return a response with a JSON body."""
    return ApiResponse(msgspec.json.encode(value), status=status, work=work)


def data_event(value: object) -> bytes:
    """Return one server-sent event without a name."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(value: dict[str, object]) -> bytes:
    """Return one server-sent event with the name of its ``type``."""
    return b"event: " + str(value["type"]).encode("ascii") + b"\n" + data_event(value)


class ApiError(Exception):
    """An error in vLLM's shape (``vllm/entrypoints/serve/exception_handling``).

    Attributes:
        status: the HTTP status.
        message: the error's message.
        type: vLLM's error type.
        param: the parameter with the error.
        headers: the headers, without the content type.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "BadRequestError",
        param: str | None = None,
        headers: tuple[Header, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.headers = headers

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the JSON body; the Anthropic routes have their own shape."""
        if anthropic:
            return msgspec.json.encode({"type": "error", "error": {"type": self.type, "message": self.message}})
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}
        )


class ValidationError(ApiError):
    """The body does not have the fields that the route needs. All routes share its shape."""

    def __init__(self, problems: list[tuple[str, str, str, str]], *, context: str = "") -> None:
        lines = [
            f"  {{'type': '{kind}', 'loc': '{where}', 'msg': '{message}', 'input': {given!r}{context}}}"
            for kind, where, message, given in problems
        ]
        title = f"{len(problems)} validation error{'' if len(problems) == 1 else 's'}:"
        super().__init__("\n".join([title, *lines]), type="Bad Request", param=problems[0][1])

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the JSON body, in OpenAI's shape on all routes."""
        return super().body()


class FrameworkError(ApiError):
    """An error of the web framework below vLLM: ``{"detail": ...}``, or ``{"error": ...}`` for the API key."""

    def __init__(self, status: int, *, key: str = "detail", headers: tuple[Header, ...] = ()) -> None:
        super().__init__(HTTPStatus(status).phrase, status=status, headers=headers)
        self._key = key

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the JSON body."""
        return msgspec.json.encode({self._key: self.message})


class Redirect(ApiError):
    """The framework's redirect from a path with a slash at its end to the route without it."""

    def __init__(self, location: bytes) -> None:
        super().__init__("", status=307, headers=((b"location", location),))

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return an empty body."""
        return b""


def simulated_failure(status: int) -> ApiError:
    """Return the error for the header ``x-simulate: status=NNN``."""
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
    name = phrase.replace(" ", "")
    return ApiError(f"Simulated failure: {status} {phrase}", status=status, type=f"{name.removesuffix('Error')}Error")


def bad_parameter(message: str, param: str, value: object = None) -> ApiError:
    """Return the 400 for a parameter with an invalid value."""
    shown = f", value={value}" if value is not None else ""
    return ApiError(f"{message} (parameter={param}{shown})", param=param)


def wrong_media_type() -> ApiError:
    """Return the 400 for a body whose media type is not JSON."""
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return ApiError(message, type="Bad Request")


def unknown_model(name: str, models: tuple[str, ...], *, pooling: bool = False) -> ApiError:
    """Return the 404 for a model that is not served; the pooling routes have a shorter message."""
    message = f"The model `{name}` does not exist."
    if pooling:
        return ApiError(message, status=404, type="NotFoundError")
    aliases = ", ".join(models)
    return ApiError(f"{message} Valid aliases: {aliases}.", status=404, type="NotFoundError", param="model")
