"""Reads and validates the fields of a JSON body, with vLLM's error messages."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgspec

from twisted_vllm.simulator.messages import ValidationError, wrong_media_type

_TRUE = frozenset(("1", "true", "t", "yes", "y", "on"))
_FALSE = frozenset(("0", "false", "f", "no", "n", "off"))
_SHOWN_LENGTH = 200
_NO_BODY = ("missing", "body", "Field required", "None")


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    return str(value)[:_SHOWN_LENGTH]


def decode_object(body: bytes, content_type: str) -> dict[str, Any]:
    """Decode a JSON object.

    Args:
        body: the request's body.
        content_type: the request's ``Content-Type``, or an empty string.

    Raises:
        ApiError: its media type is not JSON, or it is not a JSON object.
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise wrong_media_type()
    if not body:
        raise ValidationError([_NO_BODY])
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _decode_as_python(body)
    if value is None:
        raise ValidationError([_NO_BODY])
    if not isinstance(value, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        raise ValidationError([("model_attributes_type", "body", message, _shown(value))])
    return value


def _decode_as_python(body: bytes) -> object:
    # vLLM uses the standard decoder, which accepts NaN and has these messages.
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        context = f", 'ctx': {{'error': {error.msg!r}}}"
        problem = ("json_invalid", f"body.{error.pos}", "JSON decode error", "<dict of 0 items>")
        raise ValidationError([problem], context=context) from error
    except (UnicodeDecodeError, RecursionError) as error:
        problem = ("json_invalid", "body.0", "JSON decode error", "<dict of 0 items>")
        raise ValidationError([problem], context=f", 'ctx': {{'error': {str(error)!r}}}") from error


class Fields:
    """The fields of a body. Each read checks a type; `check` raises all errors together."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._problems: list[tuple[str, str, str, str]] = []

    def get(self, name: str) -> Any:
        """Return a field unchecked; ``None`` if it was not sent."""
        return self._values.get(name)

    def has(self, name: str) -> bool:
        """Return whether a field was sent and is not null."""
        return self._values.get(name) is not None

    def require(self, *names: str) -> None:
        """Note an error for each field that was not sent."""
        for name in names:
            if name not in self._values:
                self._problems.append(("missing", f"body.{name}", "Field required", _shown(self._values)))

    def string(self, name: str) -> str | None:
        """Return a string field."""
        value = self.get(name)
        if value is None or isinstance(value, str):
            return value
        self._note("string_type", name, "Input should be a valid string", value)
        return None

    def items(self, name: str) -> list[Any]:
        """Return a list field; empty if it was not sent."""
        value = self.get(name)
        if isinstance(value, list):
            return value
        if value is not None or name in self._values:
            self._note("list_type", name, "Input should be a valid list", value)
        return []

    def integer(self, name: str) -> int | None:
        """Return an integer field. Like vLLM, it accepts a string of digits and a whole float."""
        value = self.get(name)
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
            message = "Input should be a valid integer, got a number with a fractional part"
            self._note("int_from_float", name, message, value)
            return None
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                message = "Input should be a valid integer, unable to parse string as an integer"
                self._note("int_parsing", name, message, value)
                return None
        self._note("int_type", name, "Input should be a valid integer", value)
        return None

    def number(self, name: str) -> float | None:
        """Return a number field. A string that is a number is accepted."""
        value = self.get(name)
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                message = "Input should be a valid number, unable to parse string as a number"
                self._note("float_parsing", name, message, value)
                return None
        if value is not None:
            self._note("float_type", name, "Input should be a valid number", value)
        return None

    def boolean(self, name: str) -> bool:
        """Return a boolean field; false if it was not sent."""
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        text = str(value).lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        self._note("bool_parsing", name, "Input should be a valid boolean, unable to interpret input", value)
        return False

    def table(self, name: str) -> dict[str, Any]:
        """Return an object field; empty if it was not sent."""
        value = self.get(name)
        if isinstance(value, dict):
            return value
        if value is not None:
            message = "Input should be a valid dictionary or object to extract fields from"
            self._note("model_attributes_type", name, message, value)
        return {}

    def check(self) -> None:
        """Raise the errors that were found, if any.

        Raises:
            ValidationError: names every error.
        """
        if self._problems:
            raise ValidationError(self._problems)

    def fail(self, kind: str, name: str, message: str, value: object = None) -> NoReturn:
        """Raise an error for a field, or for a value inside it."""
        self._note(kind, name, message, self.get(name) if value is None else value)
        raise ValidationError(self._problems)

    def _note(self, kind: str, name: str, message: str, value: object) -> None:
        self._problems.append((kind, f"body.{name}", message, _shown(value)))
