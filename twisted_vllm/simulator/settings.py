"""What a simulator was told to be."""

from __future__ import annotations

import math

import attrs

from twisted_vllm.config.secret import Secret

DEFAULT_MODEL = "simulated-model"

#: prompt and answer together, in tokens: ``/v1/models`` reports it, and a larger ``max_tokens`` is refused
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
        models: the model names that it serves; a request that names none gets the first.
        token_interval: seconds between two tokens; 0 is as fast as the connection takes them.
        first_token: seconds from the request to its first token, or to the answer of a pooling route.
        api_key: the key that it asks for below ``/v1`` and ``/v2``; ``None`` asks for none.

    Raises:
        ValueError: a value cannot be used; the message names it.
    """

    models: tuple[str, ...] = attrs.field(default=(DEFAULT_MODEL,), validator=_at_least_one_model)
    token_interval: float = attrs.field(default=0.02, validator=_seconds)
    first_token: float = attrs.field(default=0.05, validator=_seconds)
    api_key: Secret | None = None
