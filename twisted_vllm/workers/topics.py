"""Finds the handler of a message by its topic, and the question that an answer belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import msgspec
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.workers.messages import Envelope, Kind, encode

_log = Logger()

M = TypeVar("M")
T = TypeVar("T")

#: seconds that the answer to a question may take, unless the asker says otherwise
ANSWER_SECONDS = 5.0


class NoAnswer(Exception):
    """A question was not answered: the other process has ended, takes too long, or cannot."""


class Topics:
    """The handlers of one process, and its questions that are not answered yet.

    A handler that fails is logged; the sender of a message does not hear of it, the one of a question gets `NoAnswer`.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        """Start without handlers; `clock` measures how long answers take."""
        self._clock = clock
        self._handlers: dict[str, tuple[msgspec.msgpack.Decoder[Any], Callable[[Any, int], None]]] = {}
        self._answerers: dict[str, tuple[msgspec.msgpack.Decoder[Any], Callable[[Any, int], Any]]] = {}
        self._asked: dict[int, tuple[int, msgspec.msgpack.Decoder[Any], Deferred[Any]]] = {}
        self._number = 0

    def on(self, topic: str, kind: type[M], handler: Callable[[M, int], None]) -> None:
        """Have a handler called with each message of a topic, and the number of its sender.

        Raises:
            ValueError: the topic has a handler already.
        """
        if topic in self._handlers:
            raise ValueError(f"messages about {topic} have a handler already")
        self._handlers[topic] = msgspec.msgpack.Decoder(kind), handler

    def answers(self, topic: str, kind: type[M], handler: Callable[[M, int], Any]) -> None:
        """Have a handler answer each question of a topic, at once or by a Deferred; its second argument is who asks.

        Raises:
            ValueError: the topic has a handler already.
        """
        if topic in self._answerers:
            raise ValueError(f"questions about {topic} have a handler already")
        self._answerers[topic] = msgspec.msgpack.Decoder(kind), handler

    def ask(
        self,
        send: Callable[[Envelope], None],
        peer: int,
        topic: str,
        message: Any,
        answer: type[T],
        timeout: float,
    ) -> Deferred[T]:
        """Send a question, and return its answer.

        Args:
            send: sends an envelope.
            peer: the number of the process that is asked.
            topic: what the question is about.
            message: the question.
            answer: the type of the answer.
            timeout: the seconds that it may take.

        Raises:
            NoAnswer: there is none.
        """
        self._number += 1
        number = self._number
        result: Deferred[T] = Deferred(lambda _: self._forget(number))
        self._asked[number] = peer, msgspec.msgpack.Decoder(cast(Any, answer)), result
        send(Envelope(Kind.QUESTION, topic, peer, number, msgspec.Raw(encode(message))))

        def late(_: object, seconds: float) -> T:
            raise NoAnswer(f"no answer about {topic} within {seconds:g} s")

        return result.addTimeout(timeout, self._clock, onTimeoutCancel=late)

    def _forget(self, number: int) -> None:
        self._asked.pop(number, None)

    def gone(self, peer: int, reason: str) -> None:
        """Fail the questions that a process will not answer any more."""
        for number, (asked, _, waiting) in list(self._asked.items()):
            if asked == peer and self._asked.pop(number, None) is not None:
                waiting.errback(NoAnswer(reason))

    def received(self, envelope: Envelope, send: Callable[[Envelope], None]) -> None:
        """Handle an envelope; `send` sends the answer to its sender."""
        kind = envelope.kind
        if kind == Kind.MESSAGE:
            found = self._handlers.get(envelope.topic)
            if found is not None:
                decoder, handler = found
                try:
                    handler(decoder.decode(envelope.payload), envelope.peer)
                except Exception:
                    self._log.failure("A message about {topic} could not be handled", topic=envelope.topic)
        elif kind == Kind.QUESTION:
            self._answer(envelope, send)
        else:
            self._answered(envelope)

    def _answer(self, envelope: Envelope, send: Callable[[Envelope], None]) -> None:
        topic, peer, number = envelope.topic, envelope.peer, envelope.number
        found = self._answerers.get(topic)

        def reply(kind: Kind, value: Any) -> None:
            send(Envelope(kind, topic, peer, number, msgspec.Raw(encode(value))))

        def failed(failure: Failure) -> None:
            if failure.check(CancelledError, NoAnswer) is None:
                self._log.failure("A question about {topic} could not be answered", failure, topic=topic)
            reply(Kind.FAILURE, f"it could not be answered: {type(failure.value).__name__}")

        if found is None:
            reply(Kind.FAILURE, f"nobody answers questions about {topic}")
            return
        decoder, handler = found

        def answer() -> Any:
            return handler(decoder.decode(envelope.payload), peer)

        answering = maybeDeferred(answer)
        answering.addCallback(lambda value: reply(Kind.ANSWER, value))
        answering.addErrback(failed)

    def _answered(self, envelope: Envelope) -> None:
        found = self._asked.pop(envelope.number, None)
        if found is None:
            # it came too late
            return
        _, decoder, waiting = found
        if envelope.kind == Kind.FAILURE:
            waiting.errback(NoAnswer(msgspec.msgpack.decode(envelope.payload, type=str)))
            return
        try:
            value = decoder.decode(envelope.payload)
        except msgspec.DecodeError as error:
            waiting.errback(NoAnswer(f"the answer about {envelope.topic} cannot be read: {error}"))
        else:
            waiting.callback(value)


class Party:
    """A process that talks to others: its handlers, and who hears of processes that begin and end."""

    def __init__(self, clock: IReactorTime) -> None:
        """Start without handlers; `clock` measures how long answers take."""
        self._topics = Topics(clock)
        self._when_joined: list[Callable[[int], None]] = []
        self._when_left: list[Callable[[int], None]] = []

    def on(self, topic: str, kind: type[M], handler: Callable[[M, int], None]) -> None:
        """As `Topics.on`."""
        self._topics.on(topic, kind, handler)

    def answers(self, topic: str, kind: type[M], handler: Callable[[M, int], Any]) -> None:
        """As `Topics.answers`."""
        self._topics.answers(topic, kind, handler)

    def on_joined(self, handler: Callable[[int], None]) -> None:
        """Have a handler called with the number of each process that is ready."""
        self._when_joined.append(handler)

    def on_left(self, handler: Callable[[int], None]) -> None:
        """Have a handler called with the number of each process that has ended."""
        self._when_left.append(handler)


def answers_of(asked: list[int], asking: list[Deferred[T]]) -> Deferred[dict[int, T]]:
    """Return the answers that came, by process; it never fails.

    Args:
        asked: the processes.
        asking: the question to each.
    """

    def by_process(results: list[tuple[bool, T]]) -> dict[int, T]:
        return {process: value for process, (answered, value) in zip(asked, results, strict=True) if answered}

    return DeferredList(asking, consumeErrors=True).addCallback(by_process)


def call_each(handlers: Iterable[Callable[[int], None]], process: int) -> None:
    """Tell handlers of a process that began or ended; one that fails is logged, and the others are told."""
    for handler in handlers:
        try:
            handler(process)
        except Exception:
            _log.failure("A process began or ended, and something did not take it in")


def no_answer(reason: str) -> Deferred[Any]:
    """Return a Deferred that has failed with `NoAnswer`."""
    return fail(NoAnswer(reason))
