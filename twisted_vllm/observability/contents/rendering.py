"""Renders the gathered prompt and answer of a request as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any

import msgspec

from twisted_vllm.observability.contents.answer import Answer
from twisted_vllm.observability.contents.gathered import Gathered, decoded
from twisted_vllm.observability.contents.modes import FULL, NO_LOG_MEMBER
from twisted_vllm.observability.contents.redaction import Redaction, Secrets, encode, mended
from twisted_vllm.observability.contents.routes import TOOLS, input_of, parameters_of

#: what without texts may be kept of a word: roles, kinds, names of tools, finish reasons
_WORD = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


def render(
    gathered: Gathered, redaction: Redaction, secrets: Secrets, *, allows_no_log: bool
) -> Generator[None, None, msgspec.Raw | None]:
    """Return the JSON, made in bounded steps; None if nothing is to be kept.

    Args:
        gathered: what was gathered; its request is over.
        redaction: what the operator wants taken out.
        secrets: removes secrets from texts.
        allows_no_log: whether a body may ask that nothing is kept.
    """
    answer = gathered.answer()
    yield
    body = _body_of(gathered)
    if allows_no_log and (gathered.opted_out or (isinstance(body, dict) and body.get(NO_LOG_MEMBER) is True)):
        return None
    if isinstance(body, dict):
        redaction.strike_body(body)
    found = _full(gathered, body, answer) if gathered.mode == FULL else _metadata(gathered, body, answer)
    if isinstance(found.get("output"), dict):
        redaction.strike_answer(found["output"])
    yield from redaction.clean(found, secrets)
    found["truncated"] = gathered.cut or gathered.truncated
    yield
    return msgspec.Raw(_encoded(found))


def _body_of(gathered: Gathered) -> Any:
    if gathered.form:
        return dict(gathered.form)
    if not gathered.prompt:
        return None
    body, whole = decoded(gathered.prompt)
    if not whole and not gathered.cut:
        # what Python reads and msgspec does not, such as half a pair of surrogates
        try:
            return mended(json.loads(gathered.prompt.decode("utf-8", "replace"), strict=False))
        except (ValueError, RecursionError):
            gathered.truncated = True
    return body


def _full(gathered: Gathered, body: Any, answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"mode": gathered.mode, "input": _input(gathered, body)}
    if isinstance(body, dict) and not gathered.form:
        if parameters := parameters_of(body):
            found["parameters"] = parameters
        for name in TOOLS:
            if body.get(name):
                found["tools"] = body[name]
    found["output"] = answer.report()
    _note_what_is_not_kept(found, gathered)
    return found


def _input(gathered: Gathered, body: Any) -> Any:
    if gathered.form:
        return body
    return input_of(body) if isinstance(body, dict) else None


def _note_what_is_not_kept(found: dict[str, Any], gathered: Gathered) -> None:
    if gathered.not_kept:
        found["not_kept"] = gathered.not_kept


# without texts


def _metadata(gathered: Gathered, body: Any, answer: Answer) -> dict[str, Any]:
    given = _input(gathered, body)
    found: dict[str, Any] = {"mode": gathered.mode, "input": _counted(given)}
    if isinstance(body, dict):
        tools = [_tool_name(tool) for name in TOOLS for tool in _list(body.get(name))]
        if tools:
            found["tools"] = tools
    found["output"] = _counted_answer(answer.report())
    _note_what_is_not_kept(found, gathered)
    return found


def _counted(given: Any) -> Any:
    """Return what a prompt is, without its texts."""
    if isinstance(given, list) and given and all(isinstance(each, dict) for each in given):
        return [_counted_message(each) for each in given]
    if given is None:
        return None
    return {"texts": _number_of_texts(given), "length": _length(given)}


def _counted_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    found: dict[str, Any] = {"role": _word(message.get("role") or message.get("type")), "length": _length(content)}
    kinds = [_word(part.get("type")) for part in _list(content) if isinstance(part, dict)]
    if kinds:
        found["parts"] = kinds
    calls = [_tool_name(call) for call in _list(message.get("tool_calls"))]
    if calls:
        found["tool_calls"] = calls
    return found


def _counted_answer(report: dict[str, Any] | None) -> dict[str, Any] | None:
    if report is None:
        return None
    found: dict[str, Any] = {"length": len(report.get("text", ""))}
    for name in ("reasoning", "refusal"):
        if name in report:
            found[f"{name}_length"] = len(report[name])
    if report.get("tool_calls"):
        found["tool_calls"] = [_word(call["name"]) for call in report["tool_calls"]]
    if "finish_reasons" in report:
        found["finish_reasons"] = [_word(each) for each in report["finish_reasons"]]
    if "choices" in report:
        found["choices"] = len(report["choices"])
    if "result" in report:
        found["result"] = {"texts": _number_of_texts(report["result"]), "length": _length(report["result"])}
    if "error" in report:
        error = report["error"]
        found["error"] = _word(error.get("type") or error.get("code")) if isinstance(error, dict) else "error"
    return found


def _tool_name(tool: Any) -> str:
    if not isinstance(tool, dict):
        return ""
    function = tool.get("function")
    return _word(function.get("name") if isinstance(function, dict) else tool.get("name") or tool.get("type"))


def _word(value: object) -> str:
    """Return a word that is no text; any other text becomes empty."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _leaves(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            waiting += [part for name, part in each.items() if name != "type"]
        elif isinstance(each, list):
            waiting += each


def _length(value: Any) -> int:
    """Return the characters of all texts in a value."""
    return sum(map(len, _leaves(value)))


def _number_of_texts(value: Any) -> int:
    return sum(1 for _ in _leaves(value))


def _encoded(found: dict[str, Any]) -> bytes:
    try:
        return encode(found)
    except UnicodeEncodeError:
        return encode(mended(found))
