"""Puts answers together: of vLLM's JSON bodies, and of the events of its streams.

Facts of vLLM 0.32 (entrypoints/): a chat's reasoning is ``reasoning`` (older: ``reasoning_content``); the pieces of a
tool call share its ``index``; Responses' events name the output item by ``output_index``; Anthropic's events the
content block by ``index``; a transcription streams chunks of a chat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from twisted_vllm.observability.contents.answer import MOST_NAME, Answer, Choice

_Text = str | list[Any] | None


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct, gc=False):
    content: _Text = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a chat, of completions or of a transcription, or the whole of one."""

    choices: list[_Choice] | None = None
    text: str | None = None
    error: Any = None


class Event(msgspec.Struct, gc=False):
    """An event of Responses, of Anthropic's messages or of Cohere's chat."""

    type: str = ""
    index: int | None = None
    output_index: int | None = None
    item_id: str | None = None
    delta: Any = None
    item: dict[str, Any] | None = None
    content_block: dict[str, Any] | None = None
    response: msgspec.Raw = msgspec.Raw()
    error: Any = None
    message: Any = None


class _Ended(msgspec.Struct, gc=False):
    status: str | None = None
    error: Any = None
    incomplete_details: dict[str, Any] | None = None


_ended = msgspec.json.Decoder(_Ended)
_encode = msgspec.json.Encoder().encode


# chat, completions, transcriptions


def fold_chunks(answer: Answer, chunks: list[Chunk]) -> None:
    """Add chunks to an answer."""
    add = answer.add
    for chunk in chunks:
        if chunk.error is not None:
            answer.error = chunk.error
        if chunk.text is not None:
            add(answer.choice(0).text, chunk.text)
        for each in chunk.choices or ():
            choice = answer.choice(each.index)
            if each.text:
                add(choice.text, each.text)
            message = each.delta or each.message
            if message is not None:
                _fold_message(answer, choice, message)
            if each.finish_reason:
                choice.finish_reason = each.finish_reason[:MOST_NAME]


def _fold_message(answer: Answer, choice: Choice, message: _Message) -> None:
    content = message.content
    if content:
        answer.add(choice.text, content if isinstance(content, str) else _texts_in(content))
    reasoning = message.reasoning or message.reasoning_content
    if reasoning:
        answer.add(choice.reasoning, reasoning)
    if message.refusal:
        answer.add(choice.refusal, message.refusal)
    for number, call in enumerate(message.tool_calls or ()):
        function = call.function or _Function()
        found = answer.call(choice, number if call.index is None else call.index, id=call.id, name=function.name)
        if function.arguments:
            answer.add(found.arguments, _as_text(function.arguments))
    if message.function_call is not None:
        found = answer.call(choice, "function_call", name=message.function_call.name)
        if message.function_call.arguments:
            answer.add(found.arguments, _as_text(message.function_call.arguments))


def _texts_in(parts: Any) -> str:
    """Return the texts of content in parts."""
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        return ""
    texts = (each.get("text", each.get("thinking")) for each in parts if isinstance(each, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


# Responses


def fold_response_events(answer: Answer, events: list[Event]) -> None:
    """Add events of Responses to an answer."""
    choice = answer.choice(0)
    for event in events:
        kind, delta = event.type, event.delta
        if kind.endswith(".delta") and isinstance(delta, str):
            if kind == "response.output_text.delta":
                answer.add(choice.text, delta)
            elif kind.startswith("response.reasoning"):
                answer.add(choice.reasoning, delta)
            elif kind == "response.refusal.delta":
                answer.add(choice.refusal, delta)
            elif "arguments" in kind or "code" in kind or "input" in kind:
                answer.add(answer.call(choice, _place_of(event)).arguments, delta)
        elif kind == "response.output_item.added" and event.item is not None:
            _note_item(answer, choice, _place_of(event), event.item)
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            _end_response(answer, choice, event.response)
        elif kind == "error" or event.error is not None:
            answer.error = event.error or {"message": event.message}


def _place_of(event: Event) -> object:
    return event.output_index if event.output_index is not None else event.item_id


def _note_item(answer: Answer, choice: Choice, place: object, item: dict[str, Any]) -> None:
    """Note a tool call that begins."""
    kind = _text_of(item.get("type"))
    if kind.endswith("_call"):
        call_id = item.get("call_id") or item.get("id")
        call = answer.call(choice, place, id=_text_of(call_id), name=_text_of(item.get("name")) or kind)
        call.kind = kind[:MOST_NAME]


def _end_response(answer: Answer, choice: Choice, response: msgspec.Raw) -> None:
    try:
        ended = _ended.decode(response)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    why = (ended.incomplete_details or {}).get("reason")
    choice.finish_reason = (_text_of(why) or ended.status or "")[:MOST_NAME]
    if ended.error is not None:
        answer.error = ended.error


def fold_response(answer: Answer, body: dict[str, Any]) -> None:
    """Add a whole response to an answer."""
    choice = answer.choice(0)
    for number, item in enumerate(_dicts(body.get("output"))):
        kind = _text_of(item.get("type"))
        if kind == "message":
            for part in _dicts(item.get("content")):
                answer.add(choice.text, _text_of(part.get("text")))
                if part.get("refusal"):
                    answer.add(choice.refusal, _text_of(part["refusal"]))
        elif kind == "reasoning":
            answer.add(choice.reasoning, _texts_in(item.get("content")) or _texts_in(item.get("summary")))
        elif kind.endswith("_call"):
            _note_item(answer, choice, number, item)
            given = item.get("arguments") or item.get("input") or item.get("code") or ""
            answer.add(answer.call(choice, number).arguments, _as_text(given))
    why = body.get("incomplete_details")
    reason = why.get("reason") if isinstance(why, dict) else None
    choice.finish_reason = (_text_of(reason) or _text_of(body.get("status")))[:MOST_NAME]
    if body.get("error") is not None:
        answer.error = body["error"]


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


# Anthropic's messages


def fold_message_events(answer: Answer, events: list[Event]) -> None:
    """Add events of Anthropic's messages to an answer."""
    choice = answer.choice(0)
    for event in events:
        kind, delta = event.type, event.delta
        if kind == "content_block_delta" and isinstance(delta, dict):
            _fold_block(answer, choice, event.index, delta)
        elif kind == "content_block_start" and event.content_block is not None:
            _fold_block(answer, choice, event.index, event.content_block)
        elif kind == "message_delta" and isinstance(delta, dict):
            choice.finish_reason = _text_of(delta.get("stop_reason"))[:MOST_NAME] or choice.finish_reason
        elif kind == "error" or event.error is not None:
            answer.error = event.error


def _fold_block(answer: Answer, choice: Choice, index: object, block: dict[str, Any]) -> None:
    """Add a content block, or a piece of one."""
    kind = _text_of(block.get("type"))
    if kind.endswith("tool_use"):
        call = answer.call(choice, index, id=_text_of(block.get("id")), name=_text_of(block.get("name")))
        if block.get("input"):
            answer.add(call.arguments, _as_text(block["input"]))
    elif kind == "input_json_delta":
        answer.add(answer.call(choice, index).arguments, _text_of(block.get("partial_json")))
    elif kind in ("thinking", "thinking_delta"):
        answer.add(choice.reasoning, _text_of(block.get("thinking")))
    elif kind in ("text", "text_delta"):
        answer.add(choice.text, _text_of(block.get("text")))


def fold_message(answer: Answer, body: dict[str, Any]) -> None:
    """Add a whole message to an answer."""
    choice = answer.choice(0)
    for number, block in enumerate(_dicts(body.get("content"))):
        _fold_block(answer, choice, number, block)
    choice.finish_reason = _text_of(body.get("stop_reason"))[:MOST_NAME]


# Cohere's chat


def fold_cohere_events(answer: Answer, events: list[Event]) -> None:
    """Add events of Cohere's chat to an answer."""
    choice = answer.choice(0)
    for event in events:
        delta = event.delta if isinstance(event.delta, dict) else {}
        message = delta.get("message")
        if isinstance(message, dict):
            _fold_cohere(answer, choice, event.index, message)
        if event.type == "message-end":
            choice.finish_reason = _text_of(delta.get("finish_reason"))[:MOST_NAME]
            answer.error = delta.get("error") or answer.error
        elif event.error is not None:
            answer.error = event.error


def _fold_cohere(answer: Answer, choice: Choice, index: object, message: dict[str, Any]) -> None:
    content = message.get("content")
    for part in [content] if isinstance(content, dict) else _dicts(content):
        answer.add(choice.text, _text_of(part.get("text")))
        answer.add(choice.reasoning, _text_of(part.get("thinking")))
    if isinstance(content, str):
        answer.add(choice.text, content)
    answer.add(choice.reasoning, _text_of(message.get("tool_plan")))
    calls = message.get("tool_calls")
    for number, call in enumerate([calls] if isinstance(calls, dict) else _dicts(calls)):
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        place = number if index is None else index
        found = answer.call(choice, place, id=_text_of(call.get("id")), name=_text_of(function.get("name")))
        answer.add(found.arguments, _as_text(function.get("arguments") or ""))


def fold_cohere(answer: Answer, body: dict[str, Any]) -> None:
    """Add a whole answer of Cohere's chat to an answer."""
    choice = answer.choice(0)
    message = body.get("message")
    if isinstance(message, dict):
        _fold_cohere(answer, choice, None, message)
    choice.finish_reason = _text_of(body.get("finish_reason"))[:MOST_NAME]


# answers without text


#: members of a body that are left out: ids and other metadata
_ENVELOPE = frozenset(("id", "object", "created", "usage", "model", "meta", "system_fingerprint"))
#: items of a result that are kept
MOST_ITEMS = 256


def fold_result(answer: Answer, body: dict[str, Any]) -> None:
    """Add scores, ranks, classes or tokens to an answer; of vectors, their number."""
    found = {name: _without_vectors(value) for name, value in body.items() if name not in _ENVELOPE}
    answer.size += len(_encode(found))
    answer.result = found


def _without_vectors(value: object, depth: int = 0) -> object:
    if isinstance(value, list):
        if len(value) > 8 and all(isinstance(each, (int, float)) for each in value[:8]):
            return f"[{len(value)} numbers, not kept]"
        return [_without_vectors(each, depth + 1) for each in value[:MOST_ITEMS]] if depth < 16 else None
    if isinstance(value, dict):
        return {name: _without_vectors(each, depth + 1) for name, each in value.items()} if depth < 16 else None
    return value


class Format(msgspec.Struct, frozen=True):
    """How the answers of a route are put together.

    Attributes:
        event: the type of a stream's events.
        events: adds events to an answer.
        body: adds a whole JSON body, decoded as `kind`.
        kind: the type of a body.
    """

    event: type[Any]
    events: Callable[[Answer, list[Any]], None]
    body: Callable[[Answer, Any], None]
    kind: Any = dict[str, Any]


def _fold_chunk(answer: Answer, chunk: Chunk) -> None:
    fold_chunks(answer, [chunk])


def _fold_any(answer: Answer, body: dict[str, Any]) -> None:
    """Add a body of a route that dispatches: of a chat, completions, or a result."""
    try:
        chunk = msgspec.convert(body, Chunk) if "choices" in body else None
    except msgspec.ValidationError:
        chunk = None
    if chunk is None:
        fold_result(answer, body)
    else:
        fold_chunks(answer, [chunk])


CHUNKS = Format(Chunk, fold_chunks, _fold_chunk, Chunk)
RESPONSES = Format(Event, fold_response_events, fold_response)
MESSAGES = Format(Event, fold_message_events, fold_message)
COHERE = Format(Event, fold_cohere_events, fold_cohere)
RESULT = Format(Chunk, fold_chunks, fold_result)
ANY = Format(Chunk, fold_chunks, _fold_any)
