"""Background responses of a gateway with several processes: each follows its own, and the housekeeper what is left."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall

from twisted_vllm.proxy.background_responses import BackgroundResponses
from twisted_vllm.workers.siblings import Siblings

#: what the messages are about: the id of a response whose end a client may have seen
TOPIC = "background.seen"

#: seconds after the end of a process until its responses are taken over: by then the kernel has released its files
TAKE_OVER_SECONDS = 0.5


class SharedBackground:
    """Takes over in the housekeeper what other processes followed, and tells who follows that a client has looked."""

    def __init__(self, siblings: Siblings, background: BackgroundResponses, clock: Any) -> None:
        """Connect.

        Args:
            siblings: the other processes.
            background: follows responses in this process.
            clock: the reactor.
        """
        self._background = background
        self._clock = clock
        self._call: IDelayedCall | None = None
        self._stopped = False
        if siblings.alone:
            return
        background.on_seen_elsewhere = lambda response_id: siblings.share(TOPIC, response_id)
        siblings.on(TOPIC, str, lambda response_id, sender: background.seen(response_id))
        if siblings.housekeeps:
            siblings.on_left(self._left)

    def _left(self, process: int) -> None:
        # the processes of a gateway may end together
        if not self._stopped and (self._call is None or not self._call.active()):
            self._call = self._clock.callLater(TAKE_OVER_SECONDS, self._background.recover)

    def stop(self) -> None:
        """Take nothing over any more. Idempotent."""
        self._stopped = True
        if self._call is not None and self._call.active():
            self._call.cancel()
