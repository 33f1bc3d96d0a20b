"""The settings of a simulator."""

from __future__ import annotations

import math

import attrs

from twisted_vllm.config.secret import Secret

DEFAULT_MODEL = "simulated-model"

#: the most tokens of prompt and completion together; ``/v1/models`` reports it, and a larger ``max_tokens`` is refused
MAX_MODEL_LEN = 32_768


def _at_least_one_model(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not value or not all(value):
        raise ValueError(f"{attribute.name}: name at least one model, and none that is empty")


def _seconds(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{attribute.name}: {value} is not a number of seconds of 0 or more")


@attrs.frozen
class SimulatorSettings:
    """One simulated server.

    Attributes:
        models: the models that it serves; a request without a model gets the first one.
        token_interval: seconds between two tokens; 0 is as fast as the connection takes them.
        first_token: seconds until the first token, or until the response of a pooling route.
        api_key: the key that it requires below ``/v1`` and ``/v2``; ``None`` requires none.

    Raises:
        ValueError: a value is invalid; the message names it.
    """

    models: tuple[str, ...] = attrs.field(default=(DEFAULT_MODEL,), validator=_at_least_one_model)
    token_interval: float = attrs.field(default=0.02, validator=_seconds)
    first_token: float = attrs.field(default=0.05, validator=_seconds)
    api_key: Secret | None = None
