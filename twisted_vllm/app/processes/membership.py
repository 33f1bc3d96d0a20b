"""Does what the supervisor tells a process, and ends it when there is no supervisor any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.app.processes.member import Member
from twisted_vllm.app.shared.reload import SharedReload
from twisted_vllm.app.wiring import Wiring
from twisted_vllm.workers.link import Link
from twisted_vllm.workers.messages import SUPERVISOR
from twisted_vllm.workers.processes import ACCEPT, ALIVE, CUT, STOP, Accept

#: without a supervisor, the housekeeper looks so often whether workers are left, in seconds, and gives them so much
#: longer than they need to drain
LOOK_SECONDS, DRAIN_GRACE = 0.25, 5.0


class Membership:
    """The part of a process that obeys the supervisor."""

    _log = Logger()

    def __init__(
        self,
        member: Member,
        wiring: Wiring,
        reactor: Any,
        ports: Sequence[IListeningPort],
        listen: Callable[[], None],
    ) -> None:
        """Set up; the supervisor is heard once the reactor runs.

        Args:
            member: what this process is to be.
            wiring: its parts.
            reactor: Twisted's.
            ports: those of its own slot, once it listens.
            listen: has it listen.
        """
        link = wiring.siblings
        assert isinstance(link, Link)
        self._member = member
        self._link = link
        self._wiring = wiring
        self._ports = ports
        self._listen = listen
        self._is_listening = False
        self._early: list[Accept] = []
        self._reactor = reactor
        self._ends: float | None = None
        self._accepting: dict[int, Sequence[IListeningPort]] = {}
        link.on(STOP, type(None), lambda message, sender: wiring.drain.begin("the supervisor said so"))
        link.on(CUT, type(None), lambda message, sender: wiring.drain.abort())
        SharedReload(link, wiring.reloader)
        link.answers(ALIVE, type(None), lambda question, asker: None)
        link.on(ACCEPT, Accept, self._accept)
        link.on_supervisor_gone = self._supervisor_gone
        wiring.drain.after_ports = self._stop_accepting
        # in any case, so that nothing that is told before is lost
        reactor.callWhenRunning(self._connect)

    def _connect(self) -> None:
        self._member.connect(self._link)

    def _accept(self, message: Accept, sender: int) -> None:
        """Accept clients of a slot that has no worker at present, or no longer."""
        if self._wiring.drain.begun:
            return
        if not self._is_listening:
            self._early.append(message)
            return
        for port in self._accepting.pop(message.slot, ()):
            port.stopListening()
        if message.begin:
            self._accepting[message.slot] = self._member.listen_for(message.slot, self._ports)

    def _stop_accepting(self) -> None:
        accepting, self._accepting = self._accepting, {}
        for ports in accepting.values():
            for port in ports:
                port.stopListening()
        if self._member.permits is not None:
            self._member.permits.serve_waiting()
        self._member.close_sockets()

    def _supervisor_gone(self, reason: str) -> None:
        if self._link.housekeeps and self._waits_for_workers():
            # it writes what they leave
            self._reactor.callLater(LOOK_SECONDS, self._supervisor_gone, reason)
            return
        self._wiring.drain.begin("there is no supervisor any more", at_once=True)

    def _waits_for_workers(self) -> bool:
        """Return whether to go on without a supervisor: workers drain, and have not taken too long yet."""
        now = self._reactor.seconds()
        if self._ends is None:
            settings = self._wiring.reloader.settings
            self._ends = now + settings.drain_timeout + DRAIN_GRACE
        return now < self._ends and any(os.path.exists(f"/proc/{pid}") for pid in self._link.pids.values())

    def start(self) -> None:
        """Tell that this process does its work, and accept clients once no change of keys is missed."""
        self._link.ready()
        self._wiring.changes.join(self._link, self._reactor).addCallback(self._begin).addErrback(self._not_begun)

    def _begin(self, _: object) -> None:
        if self._wiring.drain.begun:
            return
        self._listen()
        self._is_listening = True
        early, self._early = self._early, []
        for message in early:
            self._accept(message, SUPERVISOR)

    def _not_begun(self, failure: Failure) -> None:
        self._log.failure("This process cannot accept clients", failure)
        self._wiring.drain.begin("it cannot accept clients")

    def stop(self) -> None:
        """Send what waits, and say no more."""
        self._link.close()
