"""Reads the prompt and the answer of a request, and writes them as each convention wants them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import msgspec

from twisted_vllm.observability.contents.redaction import mended
from twisted_vllm.observability.tracing import names

Json = Any

#: messages that get attributes of their own; the whole is one attribute beside them
MOST_MESSAGES = 32
#: tool calls of a message that get attributes of their own
MOST_CALLS = 16
#: tools that get attributes of their own
MOST_TOOLS = 32

#: the mode of contents without texts
METADATA = "metadata"

#: the reasons of the conventions that differ from OpenAI's (``gen-ai-output-messages.json``)
_FINISH_REASONS = {"tool_calls": "tool_call", "function_call": "tool_call"}

_encode = msgspec.json.Encoder().encode


def as_json(value: Json) -> str:
    """Return a value as compact JSON; half a surrogate pair, from a client's JSON, becomes U+FFFD."""
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        return _encode(mended(value)).decode()


@attrs.frozen
class Told:
    """The prompt and the answer of a request.

    Attributes:
        input: the messages, the prompt, or whatever the body has in place of it; None if nothing was kept.
        output: the answer; None if nothing was kept.
        parameters: the other members of the body.
        tools: the tools that the body declares.
        counts: what is told in place of the texts where these are not kept: roles, lengths, names; None otherwise.
        truncated: whether something was left out.
    """

    input: Json = None
    output: Json = None
    parameters: dict[str, Json] = attrs.field(factory=dict)
    tools: list[Json] = attrs.field(factory=list)
    counts: dict[str, Json] | None = None
    truncated: bool = False

    @classmethod
    def of(cls, contents: msgspec.Raw | None) -> Told:
        """Read what an event has; nothing of it can fail."""
        if contents is None:
            return NOTHING_TOLD
        try:
            found = msgspec.json.decode(contents)
        except (msgspec.MsgspecError, RecursionError):
            return NOTHING_TOLD
        if not isinstance(found, dict):
            return NOTHING_TOLD
        truncated = found.pop("truncated", False) is True
        if found.get("mode") == METADATA:
            return cls(counts=found, truncated=truncated)
        parameters, tools = found.get("parameters"), found.get("tools")
        return cls(
            found.get("input"),
            found.get("output"),
            parameters if isinstance(parameters, dict) else {},
            tools if isinstance(tools, list) else [],
            truncated=truncated,
        )

    @property
    def input_messages(self) -> list[dict[str, Json]]:
        """The messages of the prompt; a prompt that is a text is one message of the user."""
        if isinstance(self.input, list) and all(isinstance(each, dict) for each in self.input):
            return self.input
        return [] if self.input is None else [{"role": "user", "content": self.input}]

    @property
    def choices(self) -> list[dict[str, Json]]:
        """The answers, as messages of the assistant, each with its ``finish_reason``."""
        output = self.output
        if output is None:
            return []
        if isinstance(output, list) and output and all(isinstance(each, dict) for each in output):
            return [_choice(each) for each in output]
        if not isinstance(output, dict):
            return [{"role": "assistant", "content": output}]
        if isinstance(several := output.get("choices"), list):
            return [_choice(each) for each in several if isinstance(each, dict)]
        return [_choice(output)]

    @property
    def finish_reasons(self) -> list[str]:
        """Why the answers ended, as the server says it."""
        output = self.output if self.counts is None else self.counts.get("output")
        output = output if isinstance(output, dict) else {}
        reasons = output.get("finish_reasons")
        if not isinstance(reasons, list):
            reasons = [choice.get("finish_reason") for choice in self.choices]
        return [each for each in reasons if isinstance(each, str) and each]

    @property
    def output_value(self) -> str:
        """The answer as one text: its words if it has nothing else, else JSON."""
        choices = self.choices
        if len(choices) == 1 and set(choices[0]) <= {"role", "content", "finish_reason"}:
            return as_text(choices[0].get("content"))
        return as_json(choices)


#: of a request whose contents are not kept
NOTHING_TOLD = Told()


def as_text(value: Json) -> str:
    """Return a text as it is, and anything else as JSON."""
    return value if isinstance(value, str) else "" if value is None else as_json(value)


def _choice(found: dict[str, Json]) -> dict[str, Json]:
    inner = found.get("message")
    message = inner if isinstance(inner, dict) else found
    text = message.get("text", message.get("content"))
    if text in (None, ""):
        # scores and vectors, or why there is no answer
        text = next((message[name] for name in ("refusal", "result", "error") if message.get(name)), text)
    choice: dict[str, Json] = {"role": "assistant", "content": text}
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning:
        choice["reasoning"] = reasoning
    if calls := message.get("tool_calls"):
        choice["tool_calls"] = calls
    reason = found.get("finish_reason")
    reasons = found.get("finish_reasons")
    if reason is None and isinstance(reasons, list) and reasons:
        reason = reasons[0]
    if isinstance(reason, str):
        choice["finish_reason"] = reason
    return choice


def _calls(message: dict[str, Json]) -> Iterator[tuple[str, str, Json]]:
    """Yield id, name and arguments of the tool calls of a message."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if not isinstance(call, dict):
            continue
        function = call.get("function")
        inner = function if isinstance(function, dict) else call
        arguments = inner.get("arguments", inner.get("input"))
        yield as_text(call.get("id") or call.get("call_id")), as_text(inner.get("name")), arguments


def gen_ai_messages(messages: list[dict[str, Json]], *, answers: bool = False) -> str:
    """Return messages in the form of the GenAI conventions: a role and typed parts.

    Args:
        messages: messages in OpenAI's or Anthropic's form.
        answers: whether each is an answer, which has a reason why it ended.
    """
    written: list[Json] = []
    for message in messages:
        here: dict[str, Json] = {"role": as_text(message.get("role")) or "user", "parts": list(_parts(message))}
        if answers:
            reason = as_text(message.get("finish_reason"))
            here["finish_reason"] = _FINISH_REASONS.get(reason, reason)
        written.append(here)
    return as_json(written)


def _parts(message: dict[str, Json]) -> Iterator[dict[str, Json]]:
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    if reasoning:
        yield {"type": "reasoning", "content": as_text(reasoning)}
    content = message.get("content")
    if message.get("role") == "tool":
        yield {"type": "tool_call_response", "id": as_text(message.get("tool_call_id")), "response": content}
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield {"type": "text", "content": part["text"]}
            elif isinstance(part, dict) and isinstance(part.get("type"), str):
                yield part
            else:
                yield {"type": "text", "content": as_text(part)}
    elif content is not None and content != "":
        yield {"type": "text", "content": as_text(content)}
    for id, name, arguments in _calls(message):
        yield {"type": "tool_call", "id": id, "name": name, "arguments": arguments}


def open_inference_messages(prefix: str, messages: list[dict[str, Json]]) -> Iterator[tuple[str, str]]:
    """Yield the attributes of messages as OpenInference spreads them out.

    Of many messages it keeps the first, which is the system's as a rule, and the last.
    """
    numbered = list(enumerate(messages))
    if len(numbered) > MOST_MESSAGES:
        numbered = [numbered[0], *numbered[1 - MOST_MESSAGES :]]
    for number, message in numbered:
        here = f"{prefix}.{number}.message"
        yield f"{here}.role", as_text(message.get("role")) or "user"
        content = message.get("content")
        if content is not None:
            yield f"{here}.content", _plain(content)
        for place, (id, name, arguments) in enumerate(_calls(message)):
            if place >= MOST_CALLS:
                break
            call = f"{here}.tool_calls.{place}.tool_call"
            yield f"{call}.id", id
            yield f"{call}.function.name", name
            yield f"{call}.function.arguments", as_text(arguments)
        if identity := message.get("tool_call_id"):
            yield f"{here}.tool_call_id", as_text(identity)


def _plain(content: Json) -> str:
    """Return the words of a content of several parts, if it has words alone."""
    if isinstance(content, list) and all(
        isinstance(each, dict) and isinstance(each.get("text"), str) for each in content
    ):
        return "\n".join(each["text"] for each in content)
    return as_text(content)


def open_inference_contents(told: Told) -> Iterator[tuple[str, str]]:
    """Yield prompt and answer as one value each, which OpenInference's receivers show of every span."""
    if told.input is not None:
        yield names.INPUT_VALUE, as_text(told.input)
        yield names.INPUT_TYPE, "text/plain" if isinstance(told.input, str) else "application/json"
    if told.output is not None:
        value = told.output_value
        yield names.OUTPUT_VALUE, value
        yield names.OUTPUT_TYPE, "application/json" if value[:1] == "[" else "text/plain"
