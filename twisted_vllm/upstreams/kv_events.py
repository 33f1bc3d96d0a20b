"""Subscribes to the KV events of vLLM servers over ZMQ (PyPI: pyzmq, the extra ``kv-events``).

A ZMQ socket has one file descriptor, which becomes readable when something may have come, and does so again only after
all was read. So everything that is there is read, a few milliseconds at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import zmq
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.settings import Server
from twisted_vllm.upstreams.kv_index import CacheIndex
from twisted_vllm.upstreams.kv_messages import END_OF_REPLAY, SEQUENCE_SIZE, KvEvent, UnreadableEvents, read_batch
from twisted_vllm.upstreams.kv_sequence import BatchSequence

#: messages of a server that ZMQ keeps until they are read, and the size of one in bytes; a larger one ends its
#: connection. A step of vLLM that stores 100,000 tokens sends about 500 kB.
MAX_QUEUED, MAX_MESSAGE = 1_000, 8_388_608
#: messages, and their bytes, that are read before other events of the reactor have their turn: 5 ms of work
_MESSAGES_A_TURN, _BYTES_A_TURN = 20, 131_072
#: seconds until a server that answers no request for a replay counts as one without a replay endpoint
REPLAY_SECONDS = 10.0
#: seconds after which half of what was expected in the caches is no longer expected
EXPECTED_SECONDS = 2.0
#: milliseconds between two attempts to connect, at first and at most
_RECONNECT, _MAX_RECONNECT = 100, 5_000
#: milliseconds after which a silent connection is asked whether it stands, and for the answer
_HEARTBEAT, _HEARTBEAT_ANSWER = 5_000, 10_000


class _ZmqReader:
    """Reads a ZMQ socket in the reactor."""

    def __init__(self, reactor: Any, socket: Any, received: Callable[[list[bytes]], None]) -> None:
        self._reactor = reactor
        self.socket = socket
        self._received = received
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._again: IDelayedCall | None = None
        reactor.addReader(self)
        self.read_soon()

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return "ZMQ"

    def read_soon(self) -> None:
        """Read in the next turn: the descriptor does not tell what came before it was watched, or during a write."""
        if self._again is None:
            self._again = self._reactor.callLater(0, self._read_again)

    def _read_again(self) -> None:
        self._again = None
        self.doRead()

    def doRead(self) -> None:
        size = 0
        for _ in range(_MESSAGES_A_TURN):
            if self.socket is None:
                return
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._received(frames)
            size += sum(map(len, frames))
            if size > _BYTES_A_TURN:
                break
        if self.socket is not None:
            self.read_soon()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops; `close` is called as well."""

    def close(self) -> None:
        if self.socket is None:
            return
        self._reactor.removeReader(self)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self.socket.close(linger=0)
        self.socket = None


class KvEventSubscriber:
    """Keeps the index of one server current."""

    _log = Logger()

    def __init__(self, server: Server, context: Any, reactor: Any) -> None:
        """Subscribe. It goes on, whatever the server does, until `stop`.

        Args:
            server: the server; its `kv_events` is not None.
            context: the ZMQ context.
            reactor: the reactor.
        """
        self._server = server
        self._context = context
        self._reactor = reactor
        self._index = CacheIndex()
        self._replay: _ZmqReader | None = None
        self._replay_ends: IDelayedCall | None = None
        replay = self._ask_for_replay if server.kv_events_replay is not None else None
        self._sequence = BatchSequence(self._apply, self._index.clear, replay)
        socket = self._socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, MAX_QUEUED)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        socket.connect(server.kv_events)
        self._monitor = _ZmqReader(reactor, monitor, self._connection_changed)
        self._subscription = _ZmqReader(reactor, socket, self._published)

    @property
    def index(self) -> CacheIndex | None:
        """The index; None while it is not current."""
        return self._index if self._sequence.current else None

    def age(self) -> None:
        """Let time pass for what is expected in the cache."""
        trusted = self._index.trusted
        self._index.age()
        if trusted and not self._index.trusted:
            self._log.warn(
                "The tokens of prompts are not those that {server} caches: they do not decide where prompts go",
                server=self._server.name,
                once_a_second=self._server.name,
            )

    def stop(self) -> None:
        """Close all sockets."""
        self._end_replay()
        self._monitor.close()
        self._subscription.close()

    def _socket(self, kind: int) -> Any:
        socket = self._context.socket(kind)
        for option, value in (
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
            (zmq.RECONNECT_IVL, _RECONNECT),
            (zmq.RECONNECT_IVL_MAX, _MAX_RECONNECT),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT),
            (zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_ANSWER),
            (zmq.LINGER, 0),
        ):
            socket.setsockopt(option, value)
        return socket

    def _connection_changed(self, frames: list[bytes]) -> None:
        event = int.from_bytes(frames[0][:2], "little")
        if event == zmq.EVENT_DISCONNECTED:
            self._log.warn("The KV events of {server} ended", server=self._server.name, once_a_second=self._server.name)
            self._end_replay()
            self._sequence.disconnected()
        else:
            self._log.info("Following the KV events of {server}", server=self._server.name)
            self._sequence.connected()

    def _published(self, frames: list[bytes]) -> None:
        # a restarted server begins anew with its numbers: first see whether the connection broke
        self._monitor.doRead()
        self._take(frames, self._sequence.published)

    def _take(self, frames: list[bytes], take: Callable[[int, Sequence[KvEvent]], None]) -> None:
        try:
            if len(frames) != 3 or len(frames[1]) != SEQUENCE_SIZE:
                raise UnreadableEvents(f"a message of {len(frames)} frames")
            take(int.from_bytes(frames[1], "big"), read_batch(frames[2]))
        except UnreadableEvents as error:
            self._log.warn(
                "Cannot read the KV events of {server}: {reason}",
                server=self._server.name,
                reason=str(error),
                once_a_second=self._server.name,
            )
            self._end_replay()
            self._sequence.unreadable()

    def _apply(self, events: Sequence[KvEvent]) -> None:
        for event in events:
            self._index.apply(event)

    # replays

    def _ask_for_replay(self, number: int) -> None:
        self._end_replay()
        socket = self._socket(zmq.DEALER)
        socket.connect(self._server.kv_events_replay)
        self._replay = _ZmqReader(self._reactor, socket, self._replayed)
        self._replay_ends = self._reactor.callLater(REPLAY_SECONDS, self._replay_failed)
        socket.send_multipart([b"", number.to_bytes(SEQUENCE_SIZE, "big")], zmq.DONTWAIT)

    def _replayed(self, frames: list[bytes]) -> None:
        if len(frames) == 4 and frames[2] == END_OF_REPLAY:
            self._end_replay()
            self._sequence.replay_ended()
        else:
            # an empty frame stands before the three
            self._take(frames[1:], self._sequence.replayed)

    def _replay_failed(self) -> None:
        self._replay_ends = None
        self._log.warn("{server} does not replay its KV events", server=self._server.name)
        self._end_replay()
        self._sequence.replay_failed()

    def _end_replay(self) -> None:
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        if self._replay_ends is not None:
            self._replay_ends.cancel()
            self._replay_ends = None
