"""The settings of ``passthrough.log_bodies``: which prompts and answers traces and sinks get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from twisted_vllm.config.body_paths import BadPath, parse_path
from twisted_vllm.config.checks import checker, flag, kind_of, list_of, text, whole
from twisted_vllm.config.declaration import setting
from twisted_vllm.config.name_patterns import MAX_WILDCARDS, WILDCARD
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.text_patterns import READY, UnsafePattern, compiled

#: how much is kept, the least first
OFF, METADATA, FULL = MODES = ("off", "metadata", "full")


#: LiteLLM's name of an opt-out, in the metadata of a key or a team
OPT_OUT = "turn_off_message_logging"


def opts_out(metadata: Mapping[str, Any]) -> bool:
    """Return whether the metadata of a key or a team says, in LiteLLM's ways, that no texts are kept of it."""
    settings = metadata.get("callback_settings")
    places: list[object] = [metadata, settings]
    logging = metadata.get("logging")
    places += logging if isinstance(logging, list) else [logging]
    for place in places:
        if isinstance(place, dict):
            inner = place.get("callback_vars")
            for each in (place, inner if isinstance(inner, dict) else {}):
                value = each.get(OPT_OUT)
                if value is True or (isinstance(value, str) and value.strip().lower() in ("true", "1", "yes")):
                    return True
    return False


def keep_opt_out(values: dict[str, Any], before: Mapping[str, Any] | None) -> None:
    """Set ``log_bodies`` to off among the new values of a key or a team whose metadata opts out, whatever else it says.

    Args:
        values: its attributes that change.
        before: its metadata until now; None for a new one.
    """
    metadata = values.get("metadata", before)
    if metadata and opts_out(metadata):
        values["log_bodies"] = OFF


@checker("mode", ", ".join(MODES))
def log_mode(value: object, place: Place) -> str:
    """Check for a mode. YAML reads ``off`` without quotes as false."""
    if value is False:
        return OFF
    if not isinstance(value, str) or value not in MODES:
        raise Rejected(f"must be one of {', '.join(MODES)}")
    return value


@checker("mapping of models to modes")
def modes_of_models(value: object, place: Place) -> Mapping[str, str]:
    """Check for a mapping of names of models, with * as wildcard, to modes."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Rejected(f"must be a mapping of models to modes, not {kind_of(value)}")
    found = {}
    for name, mode in value.items():
        at = place.key(name)
        checked, wanted = at.attempt(text, name), at.attempt(log_mode, mode)
        if checked is not None and checked.count(WILDCARD) > MAX_WILDCARDS:
            at.refuse(f"has more than {MAX_WILDCARDS} wildcards")
        elif checked is not None and wanted is not None:
            found[checked] = wanted
    return found


@checker("field")
def body_field(value: object, place: Place) -> str:
    """Check for the path of a field in a body: ``messages[].content[type=image_url]``."""
    found = text(value, place)
    try:
        parse_path(found)
    except BadPath as error:
        raise Rejected(str(error)) from None
    return found


@checker("pattern")
def text_pattern(value: object, place: Place) -> str:
    """Check for the name of a ready pattern, or a regular expression that takes little time on any text."""
    found = text(value, place)
    if found not in READY:
        try:
            compiled(found)
        except UnsafePattern as error:
            raise Rejected(str(error)) from None
    return found


@attrs.frozen
class LogBodiesSettings:
    """Which prompts and answers traces and sinks get. The log and the ledger get none."""

    mode: str = setting(
        OFF,
        log_mode,
        "What is kept of requests about which no key, team or model says anything. off: nothing. metadata: no text, "
        "but roles, counts, lengths, names of tools and finish reasons. full: prompts and answers.",
    )
    models: Mapping[str, str] = setting(
        {},
        modes_of_models,
        "The mode of models by the names that callers use, with * as wildcard: {qwen: full, internal-*: off}. Of "
        "several that match, and model_info.log_bodies, the one counts that keeps least.",
    )
    max_prompt_bytes: int = setting(
        65_536, whole(), "What is kept of one prompt, from its beginning; media are never kept.", unit="bytes"
    )
    max_answer_bytes: int = setting(
        65_536, whole(), "What is kept of one answer, from its beginning, all its choices together.", unit="bytes"
    )
    max_total_bytes: int = setting(
        67_108_864,
        whole(),
        "What is kept in memory of all requests in flight. What comes beyond it is left out, and marked as truncated.",
        unit="bytes",
    )
    redact_fields: tuple[str, ...] = setting(
        (),
        list_of(body_field),
        "Fields that are never kept: paths in the request's body, such as metadata.secret or "
        "messages[].content[type=image_url]; behind output. such of the answer, as in output.tool_calls[].arguments.",
    )
    redact_patterns: tuple[str, ...] = setting(
        (),
        list_of(text_pattern),
        f"Texts that are struck out of prompts and answers: {', '.join(READY)}, or a regular expression. One that may "
        "take long on some text is refused.",
    )
    allow_no_log: bool = setting(
        True,
        flag,
        "Whether a client may ask that nothing is kept of its request: by the header x-litellm-no-log, or by no-log: "
        "true in the body. litellm_settings.global_disable_no_log_param forbids it as well.",
    )


#: nothing is kept
DEFAULT_LOG_BODIES = LogBodiesSettings()
