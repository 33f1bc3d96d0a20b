"""An answer as it is put together: choices with text, reasoning, refusal and tool calls, in bounded memory."""

from __future__ import annotations

from typing import Any

#: choices of an answer, and tool calls of a choice, that are kept apart
MOST_CHOICES, MOST_CALLS = 128, 128
#: characters of a name, an id or a finish reason
MOST_NAME = 256
#: pieces of text that are kept apart
MOST_PIECES = 64


class ToolCall:
    """One tool call."""

    __slots__ = ("arguments", "id", "kind", "name")

    def __init__(self) -> None:
        self.id = self.name = ""
        self.kind = "function"
        self.arguments: list[str] = []

    def report(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"id": self.id, "type": self.kind, "name": self.name, "arguments": "".join(self.arguments)}


class Choice:
    """One choice."""

    __slots__ = ("calls", "finish_reason", "reasoning", "refusal", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[object, ToolCall] = {}
        self.finish_reason = ""

    def report(self) -> dict[str, Any]:
        """Return it as JSON, without what it has not."""
        found: dict[str, Any] = {"text": "".join(self.text)}
        for name, pieces in (("reasoning", self.reasoning), ("refusal", self.refusal)):
            if pieces:
                found[name] = "".join(pieces)
        if self.calls:
            found["tool_calls"] = [call.report() for call in self.calls.values()]
        if self.finish_reason:
            found["finish_reason"] = self.finish_reason
        return found


class Answer:
    """An answer.

    Attributes:
        error: the error that it is, or that ended it; None without one.
        result: what is no text: scores, ranks, tokens; None without.
        size: the bytes of text that are kept.
        truncated: whether something was left out.
    """

    __slots__ = ("_choices", "_most", "_pieces", "error", "result", "size", "truncated")

    def __init__(self, most: int) -> None:
        """Begin; at most `most` bytes of text are kept."""
        self._choices: dict[int, Choice] = {}
        self._most = most
        self._pieces = 0
        self.error: Any = None
        self.result: Any = None
        self.size = 0
        self.truncated = False

    def choice(self, index: int) -> Choice:
        """Return a choice; beyond `MOST_CHOICES`, one that is dropped."""
        found = self._choices.get(index)
        if found is None:
            found = Choice()
            if len(self._choices) < MOST_CHOICES:
                self._choices[index] = found
            else:
                self.truncated = True
        return found

    def add(self, pieces: list[str], text: str) -> None:
        """Add a piece of text, as far as there is room."""
        if not text:
            return
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        room = self._most - self.size
        if size > room:
            self.truncated = True
            if room <= 0:
                return
            text = text.encode("utf-8", "surrogatepass")[:room].decode("utf-8", "ignore")
            size = room
        self.size += size
        self._pieces += 1
        pieces.append(text)

    def join_pieces(self) -> None:
        """Join the pieces if there are many: each takes more than its text."""
        if self._pieces < MOST_PIECES:
            return
        self._pieces = 0
        for choice in self._choices.values():
            for pieces in (choice.text, choice.reasoning, choice.refusal, *map(_arguments, choice.calls.values())):
                if len(pieces) > 1:
                    pieces[:] = ["".join(pieces)]
                self._pieces += len(pieces)

    def call(self, choice: Choice, key: object, *, id: str | None = None, name: str | None = None) -> ToolCall:
        """Return a tool call of a choice by what tells it from others, and set what is known of it."""
        found = choice.calls.get(key)
        if found is None:
            found = ToolCall()
            if len(choice.calls) < MOST_CALLS:
                choice.calls[key] = found
            else:
                self.truncated = True
        if id:
            found.id = id[:MOST_NAME]
        if name:
            found.name = name[:MOST_NAME]
        return found

    def report(self) -> dict[str, Any] | None:
        """Return it as JSON: the first choice, and all of them if there are several; None if there is nothing."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        found: dict[str, Any] = {}
        if choices:
            found = choices[0].report()
            found.pop("finish_reason", None)
            found["finish_reasons"] = [each.finish_reason for each in choices]
            if len(choices) > 1:
                found["choices"] = [
                    {"index": index, **self._choices[index].report()} for index in sorted(self._choices)
                ]
        if self.result is not None:
            found["result"] = self.result
        if self.error is not None:
            found["error"] = self.error
        return found or None


def _arguments(call: ToolCall) -> list[str]:
    return call.arguments
