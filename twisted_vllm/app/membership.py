"""Does what the supervisor tells a process, and ends it when there is no supervisor any more."""

from __future__ import annotations

from typing import Any

from twisted_vllm.app.member import Member
from twisted_vllm.app.wiring import Wiring
from twisted_vllm.workers.link import Link
from twisted_vllm.workers.processes import CUT, STOP


class Membership:
    """The part of a process that obeys the supervisor."""

    def __init__(self, member: Member, wiring: Wiring, reactor: Any) -> None:
        """Set up; the supervisor is heard from `start` on."""
        link = wiring.siblings
        assert isinstance(link, Link)
        self._member = member
        self._link = link
        self._wiring = wiring
        link.on(STOP, type(None), lambda message, sender: wiring.drain.begin("the supervisor said so"))
        link.on(CUT, type(None), lambda message, sender: wiring.drain.abort())
        link.on_supervisor_gone = lambda reason: wiring.drain.begin("there is no supervisor any more")
        wiring.drain.after_ports = member.close_sockets
        # in any case, so that nothing that is told before is lost
        reactor.callWhenRunning(self._connect)

    def _connect(self) -> None:
        self._member.connect(self._link, self._wiring.sockets)

    def start(self) -> None:
        """Tell that this process does its work."""
        self._link.ready()

    def stop(self) -> None:
        """Send what waits, and say no more."""
        self._link.close()
