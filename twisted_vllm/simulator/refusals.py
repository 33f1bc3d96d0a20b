"""vLLM's own error answers, as a server of vLLM 0.32.0 gives them (``vllm/entrypoints/serve/exception_handling``)."""

from __future__ import annotations

from http import HTTPStatus

import msgspec


class Refusal(Exception):
    """An error answer in vLLM's shape.

    Attributes:
        status: the HTTP status.
        message: what the answer says.
        type: vLLM's error type.
        param: the parameter at fault.
        headers: headers beside the content type.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "BadRequestError",
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.headers = headers

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the JSON body; the Anthropic routes have a shape of their own."""
        if anthropic:
            return msgspec.json.encode({"type": "error", "error": {"type": self.type, "message": self.message}})
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}
        )


class ValidationFailed(Refusal):
    """The body does not have the fields that the route asks for; the shape is the same on every route."""

    def __init__(self, problems: list[tuple[str, str, str, str]], *, context: str = "") -> None:
        lines = [
            f"  {{'type': '{kind}', 'loc': '{where}', 'msg': '{message}', 'input': {given!r}{context}}}"
            for kind, where, message, given in problems
        ]
        title = f"{len(problems)} validation error{'' if len(problems) == 1 else 's'}:"
        super().__init__("\n".join([title, *lines]), type="Bad Request", param=problems[0][1])

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the JSON body, in OpenAI's shape also on the Anthropic routes."""
        return super().body()


class FrameworkRefusal(Refusal):
    """An answer of the web framework below vLLM: ``{"detail": ...}``, or ``{"error": ...}`` for the API key."""

    def __init__(self, status: int, *, key: str = "detail", headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(HTTPStatus(status).phrase, status=status, headers=headers)
        self._key = key

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the JSON body."""
        return msgspec.json.encode({self._key: self.message})


class Redirect(Refusal):
    """Where a path differs from a route by a slash at its end, the framework sends the client there."""

    def __init__(self, location: bytes) -> None:
        super().__init__("", status=307, headers=((b"location", location),))

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return no bytes."""
        return b""


def simulated_failure(status: int) -> Refusal:
    """Return the error that the header ``x-simulate: status=`` asks for."""
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
    name = phrase.replace(" ", "")
    return Refusal(f"Simulated failure: {status} {phrase}", status=status, type=f"{name.removesuffix('Error')}Error")


def bad_parameter(message: str, param: str, value: object = None) -> Refusal:
    """Return the 400 for a parameter with a value that cannot be used."""
    shown = f", value={value}" if value is not None else ""
    return Refusal(f"{message} (parameter={param}{shown})", param=param)


def wrong_media_type() -> Refusal:
    """Return the 400 for a body that does not say that it is JSON."""
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return Refusal(message, type="Bad Request")


def unknown_model(name: str, models: tuple[str, ...], *, pooling: bool = False) -> Refusal:
    """Return the 404 for a model that is not served; the pooling routes say less about it than the others."""
    message = f"The model `{name}` does not exist."
    if pooling:
        return Refusal(message, status=404, type="NotFoundError")
    aliases = ", ".join(models)
    return Refusal(f"{message} Valid aliases: {aliases}.", status=404, type="NotFoundError", param="model")
