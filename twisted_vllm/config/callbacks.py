"""LiteLLM's ``callbacks``, ``success_callback`` and ``failure_callback``: the settings, and what they resolve to.

`callback_reading` says what each name means; it is loaded once a file names one.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from twisted_vllm.config.checks import checker, kind_of, list_of, text
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.sinks import SinkSettings
from twisted_vllm.config.tracing_destinations import TraceDestination


@attrs.frozen
class Callbacks:
    """What the callbacks ask for.

    Attributes:
        sinks: the sinks.
        litellm_metrics: whether ``/metrics`` has LiteLLM's names as well.
        traces: the receivers of traces.
    """

    sinks: tuple[SinkSettings, ...] = ()
    litellm_metrics: bool = False
    traces: tuple[TraceDestination, ...] = ()


NO_CALLBACKS = Callbacks()


@checker("list of callbacks, or one")
def callback_names(value: object, place: Place) -> tuple[str, ...]:
    """Check for names of callbacks."""
    found: tuple[str, ...] = list_of(text, lone=True)(value, place)
    return found


@checker("mapping of LiteLLM's settings of S3")
def s3_params(value: object, place: Place) -> Mapping[str, object]:
    """Check for ``s3_callback_params``; `callback_reading` reads them once a callback needs them.

    Each text may be a key, also one below a name that is misspelt.
    """
    return {
        str(name): Secret(content) if isinstance(content, str) else content
        for name, content in mapping_of(value).items()
    }


@checker("mapping of callbacks to their settings")
def callback_settings(value: object, place: Place) -> Mapping[str, object]:
    """Check for ``callback_settings``; `callback_reading` reads those of the callbacks that are named."""
    return mapping_of(value)


def mapping_of(value: object) -> Mapping[str, object]:
    """Check for a mapping; null is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Rejected(f"must be a mapping, not {kind_of(value)}")
    return value
