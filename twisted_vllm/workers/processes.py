"""Starts the processes of a gateway, and replaces those that end."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, TimeoutError, inlineCallbacks, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.siblings import HOUSEKEEPER
from twisted_vllm.workers.topics import NoAnswer

#: the supervisor tells a process to end: at first when its work is done, then at once
STOP, CUT = "stop", "cut"
#: it asks each second whether a process is alive, and kills one that says nothing for so many seconds
ALIVE, LOOK_SECONDS, SILENT_SECONDS = "alive", 1.0, 30.0
#: it also kills one that leaves so many bytes of messages unread
MAX_UNREAD = 64 * 1024 * 1024
#: it tells a worker whether to accept for another slot
ACCEPT = "accept"
#: seconds that a new process has to get ready before the old one of its slot is kept
READY_SECONDS = 120.0

#: the first and the longest wait before a process is replaced, in seconds; the longest of one that was ready: it served
FIRST_BACKOFF, MAX_BACKOFF, MAX_BACKOFF_OF_READY = 0.1, 10.0, 1.0
#: a process that lived so many seconds was well: the next wait is the first again
WELL_SECONDS = 30.0
#: so many processes of one slot in a row that ended before they were ready, and the gateway gives up
MOST_FAILURES = 8
#: seconds after its end in which what a process sent is still read
LAST_WORDS_SECONDS = 0.5
#: seconds after the longest drain in which a process has to end; then it is killed
END_SECONDS = 30.0


class Accept(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A worker is to accept clients of another slot, or no longer.

    Attributes:
        slot: the other slot.
        begin: whether to begin or to end.
    """

    slot: int
    begin: bool


class NotReady(Exception):
    """A process that was to replace another did not get ready; the message says why."""


@attrs.frozen
class Command:
    """How a process is started.

    Attributes:
        arguments: the program and its arguments.
        environ: its environment.
        descriptors: its descriptors, as ``childFDs`` of ``IReactorProcess.spawnProcess``.
    """

    arguments: Sequence[str]
    environ: Mapping[str, str] = attrs.field(repr=False)
    descriptors: Mapping[int, int]


#: returns the command of a process by its number, its slot and the socket to the supervisor
MakeCommand = Callable[[int, int, int], Command]


class Running(ProcessProtocol):
    """A process that was started.

    Attributes:
        number: its number.
        slot: its slot.
        started: when, in the reactor's seconds.
        is_ready: whether it said that it does its work.
        is_ending: whether it was told to end.
        is_asked: whether it was asked if it is alive, and has not answered yet.
        ready: fires when it is ready; it fails with `NotReady` if it ends before.
        ended: fires when it has ended.
    """

    def __init__(self, number: int, slot: int, started: float, on_end: Callable[[Running, str], None]) -> None:
        self.number = number
        self.slot = slot
        self.started = started
        self.is_ready = False
        self.is_ending = False
        self.is_asked = False
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._on_end = on_end

    @property
    def name(self) -> str:
        """Its name in the log."""
        return name_of(self.slot)

    @property
    def pid(self) -> int | None:
        """Its process id; None once it has ended."""
        return None if self.transport is None else self.transport.pid

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended."""
        transport: Any = self.transport
        if transport is not None:
            with contextlib.suppress(ProcessExitedAlready):
                transport.signalProcess(int(number))

    def processEnded(self, reason: Failure = connectionDone) -> None:
        """It has ended, and its descriptors are closed."""
        value: Any = reason.value
        number = getattr(value, "signal", None)
        self._end(f"by {signal.Signals(number).name}" if number else f"with status {getattr(value, 'exitCode', 0)}")

    def not_started(self, reason: str) -> None:
        """It could not be started."""
        self._end(reason)

    def _end(self, how: str) -> None:
        self._on_end(self, how)
        if not self.is_ready:
            self.ready.addErrback(_ignore_failure)
            self.ready.errback(NotReady(f"it ended {how}; the log says why"))
        self.ended.callback(None)


def name_of(slot: int) -> str:
    """Return the name of a slot in logs and metrics."""
    return "housekeeper" if slot == HOUSEKEEPER else f"worker-{slot}"


class Processes:
    """The processes of a gateway, one for each slot.

    Attributes:
        running: those that were started and have not ended, by their numbers.
        ends: how many have ended, by the name of their slot and how: ``told``, or as the log says it.
        on_serving: called once, when all slots are ready for the first time.
        on_give_up: called once with the reason when a slot cannot be filled.
        drain_seconds: how long a process may take to drain.
    """

    _log = Logger()

    def __init__(self, reactor: Any, sockets: Any, hub: Hub, workers: int, make_command: MakeCommand) -> None:
        """Set up; `start` starts them.

        Args:
            reactor: starts processes.
            sockets: the reactor of the sockets to them.
            hub: talks to them.
            workers: how many workers there are, beside the housekeeper.
            make_command: returns the command of a process.
        """
        self.running: dict[int, Running] = {}
        self.ends: Counter[tuple[str, str]] = Counter()
        self.on_serving: Callable[[], None] = _ignore
        self.on_give_up: Callable[[str], None] = _ignore_reason
        self.drain_seconds = 0.0
        self._reactor = reactor
        self._sockets = sockets
        self._hub = hub
        self._slots = range(HOUSEKEEPER, workers + 1)
        self._make_command = make_command
        self._number = 0
        self._served = False
        self._stopping = False
        self._short_lives: dict[int, int] = {}
        self._failures: dict[int, int] = {}
        self._starting: dict[int, IDelayedCall] = {}
        self._acceptors: dict[int, int] = {}
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        hub.on_ready = self._ready

    def start(self) -> None:
        """Start a process for each slot."""
        for slot in self._slots:
            self.start_one(slot)
        self._looking.start(LOOK_SECONDS, now=False)

    def start_one(self, slot: int) -> Running:
        """Start a process for a slot."""
        self._number += 1
        number = self._number
        ours, theirs = socket.socketpair()
        process = Running(number, slot, self._reactor.seconds(), self._ended)
        self.running[number] = process
        self._hub.connect(self._sockets, ours, number, slot)
        try:
            command = self._make_command(number, slot, theirs.fileno())
            self._reactor.spawnProcess(
                process, command.arguments[0], command.arguments, dict(command.environ), childFDs=command.descriptors
            )
        except OSError as error:
            # no more processes, memory or descriptors, or no permission
            process.not_started(f"before it began: {error}")
        finally:
            theirs.close()
        return process

    def stop_all(self, slots: Callable[[int], bool] = lambda slot: True) -> Deferred[Any]:
        """Tell the processes of some slots to end when their work is done; fires when they have ended."""
        self._stopping = True
        if self._looking.running:
            self._looking.stop()
        for call in self._starting.values():
            call.cancel()
        self._starting.clear()
        waiting = []
        for process in list(self.running.values()):
            if slots(process.slot):
                self.stop_one(process)
                waiting.append(process.ended)
        return _all_of(waiting)

    @inlineCallbacks
    def replace_all(self) -> Any:
        """Replace the processes one after the other by new ones, workers first, without a client that is refused.

        A worker gets ready beside the one that it replaces, which then drains. The housekeeper's old process ends
        before the new one begins: both would write the ledger.

        Raises:
            NotReady: a new process did not get ready. Those of its slot and of the later ones were not replaced.
        """
        for slot in self._slots:
            if slot == HOUSEKEEPER:
                continue
            former = self._filling(slot)
            if not former:
                # the next process of the slot has the new code already
                continue
            process = self.start_one(slot)
            try:
                yield process.ready.addTimeout(READY_SECONDS, self._reactor)
            except TimeoutError:
                process.is_ending = True
                process.send_signal(signal.SIGKILL)
                raise NotReady(f"it was not ready after {READY_SECONDS:g} s") from None
            if self._stopping:
                return
            for each in former:
                self.stop_one(each)
        former = self._filling(HOUSEKEEPER)
        for process in former:
            self.stop_one(process)
            yield process.ended
        # without a former one, the next is about to start
        if former and not self._stopping:
            yield self.start_one(HOUSEKEEPER).ready

    def stop_one(self, process: Running) -> None:
        """Tell a process to end when its work is done."""
        if not process.is_ending:
            process.is_ending = True
            late = self._reactor.callLater(
                self.drain_seconds + END_SECONDS, self._kill, process, "does not end in time after it was told to"
            )
            process.ended.addCallback(_cancelled, late)
        self._hub.send(process.number, STOP, None)

    def cut(self) -> None:
        """Tell all processes to end at once."""
        for process in self.running.values():
            self._hub.send(process.number, CUT, None)

    def reopen_logs(self) -> None:
        """Have all processes open their log files again. One that is not ready yet has just opened them."""
        for process in list(self.running.values()):
            if process.is_ready:
                process.send_signal(signal.SIGUSR1)

    def _ready(self, number: int) -> None:
        process = self.running.get(number)
        if process is None:
            return
        process.is_ready = True
        self._assign()
        process.ready.callback(None)
        if not self._served and {each.slot for each in self.running.values() if each.is_ready} == set(self._slots):
            self._served = True
            self.on_serving()

    def _ended(self, process: Running, how: str) -> None:
        self.running.pop(process.number, None)
        # it sent its last messages before it ended
        self._reactor.callLater(LAST_WORDS_SECONDS, self._hub.close, process.number)
        self._assign()
        self.ends[process.name, "told" if process.is_ending or self._stopping else how] += 1
        if process.is_ending or self._stopping:
            return
        slot = process.slot
        seconds = self._reactor.seconds() - process.started
        lived_long = seconds >= WELL_SECONDS
        short_lives = self._short_lives[slot] = 1 if lived_long else self._short_lives.get(slot, 0) + 1
        failures = self._failures[slot] = 0 if lived_long or process.is_ready else self._failures.get(slot, 0) + 1
        self._log.error(
            "The {process} has ended {how} after {seconds:.1f} s", process=process.name, how=how, seconds=seconds
        )
        if self._filling(slot):
            # another process of the slot runs: this one was to replace it, or to be replaced
            return
        if not process.is_ready and not self._served:
            self._give_up(f"the {process.name} ended {how} before it was ready; the log says why")
        elif failures >= MOST_FAILURES:
            self._give_up(f"the {process.name} ended {failures} times in a row before it was ready, the last {how}")
        else:
            longest = MAX_BACKOFF_OF_READY if process.is_ready else MAX_BACKOFF
            wait = min(FIRST_BACKOFF * 2 ** (short_lives - 1), longest)
            self._starting[slot] = self._reactor.callLater(wait, self._replace, slot)

    def _replace(self, slot: int) -> None:
        del self._starting[slot]
        self.start_one(slot)

    def _filling(self, slot: int) -> list[Running]:
        """Return the processes of a slot that were not told to end."""
        return [each for each in self.running.values() if each.slot == slot and not each.is_ending]

    def _look(self) -> None:
        """Kill what does not answer, or does not read: it holds up others, and will not come back."""
        for process in list(self.running.values()):
            unread = self._hub.unsent(process.number)
            if unread > MAX_UNREAD:
                self._kill(process, f"leaves {unread} bytes of messages unread")
            elif process.is_ready and not process.is_asked:
                process.is_asked = True
                asking = self._hub.ask(process.number, ALIVE, None, type(None), SILENT_SECONDS)
                asking.addCallbacks(self._answered, self._silent, (process,), {}, (process,))

    def _answered(self, answer: None, process: Running) -> None:
        process.is_asked = False

    def _silent(self, failure: Failure, process: Running) -> None:
        failure.trap(NoAnswer)
        if process.number in self.running and not process.is_ending:
            self._kill(process, f"does not answer: {failure.getErrorMessage()}")

    def kill(self, number: int, reason: str) -> None:
        """Kill a process, which is replaced; nothing happens if it has ended. The log says its name and the reason."""
        process = self.running.get(number)
        if process is not None:
            self._kill(process, reason)

    def _kill(self, process: Running, reason: str) -> None:
        self._log.error("The {process} {reason}; it is killed", process=process.name, reason=reason)
        process.send_signal(signal.SIGKILL)

    def _assign(self) -> None:
        """Have a worker accept for each slot that has none, so that no client waits for the next."""
        if self._stopping:
            return
        ready = {each.number: each.slot for each in self.running.values() if each.is_ready and not each.is_ending}
        workers = sorted(number for number, slot in ready.items() if slot != HOUSEKEEPER)
        filled = set(ready.values())
        for slot in self._slots:
            acceptor = self._acceptors.get(slot)
            if slot == HOUSEKEEPER:
                continue
            if slot in filled:
                if acceptor is not None:
                    del self._acceptors[slot]
                    self._hub.send(acceptor, ACCEPT, Accept(slot, False))
            elif acceptor not in ready and workers:
                self._acceptors[slot] = workers[slot % len(workers)]
                self._hub.send(self._acceptors[slot], ACCEPT, Accept(slot, True))

    def _give_up(self, reason: str) -> None:
        give_up, self.on_give_up = self.on_give_up, _ignore_reason
        give_up(reason)


def _all_of(waiting: list[Deferred[None]]) -> Deferred[Any]:
    """Return a Deferred that fires when all have fired; they stay usable by others."""
    done: Deferred[Any] = Deferred()
    left = len(waiting)
    if not left:
        return succeed(None)

    def ended(value: None) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.callback(None)

    for each in waiting:
        each.addCallback(ended)
    return done


def _ignore_failure(failure: Failure) -> None:
    """Do nothing: whoever waits for it has been told."""


def _cancelled(_: object, call: IDelayedCall) -> None:
    """Cancel a call, if it was not made."""
    if call.active():
        call.cancel()


def _ignore() -> None:
    """Do nothing."""


def _ignore_reason(reason: str) -> None:
    """Do nothing."""
