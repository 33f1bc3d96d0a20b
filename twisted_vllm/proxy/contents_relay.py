"""Relays of requests whose prompt and answer are kept."""

from __future__ import annotations

from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.proxy.learning_relay import LearningRelay
from twisted_vllm.proxy.relay import Relay


class ContentsRelay(Relay):
    """Relays a response, and has its body gathered as the server sent it."""

    def dataReceived(self, data: bytes) -> None:
        """Gather a piece, and write it."""
        if self.context.contents is not None and not self._ended:
            if self._held is not None:
                # the gathering begins with the head
                self._release()
            self._gather(data)
        super().dataReceived(data)

    def _gather(self, data: bytes) -> None:
        contents = self.context.contents
        if contents is not None:
            try:
                contents.feed(data)
            except Exception:
                self._give_up()

    def _give_up(self) -> None:
        """Gather nothing more: a fault of that does not concern the client."""
        self._log.failure("The answer of a request could not be gathered")
        self.context.contents = None

    def answer_whole(self, head: ResponseHead, body: bytes) -> None:
        """Relay a response whose body was read already, and gather it."""
        contents = self.context.contents
        super().answer_whole(head, body)
        if contents is not None:
            # it is made JSON in a later turn
            contents.feed(body)

    def _relay_head(self, head: ResponseHead) -> None:
        if self.context.contents is not None:
            try:
                self.context.contents.start(head)
            except Exception:
                self._give_up()
        super()._relay_head(head)


class LearningContentsRelay(ContentsRelay, LearningRelay):
    """One that also learns which server stores the response."""
