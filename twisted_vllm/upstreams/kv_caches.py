"""What is in the servers' prefix caches, where the configuration names their KV events.

Without any, nothing of this is used, and pyzmq is not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from twisted_vllm.bodies.edits import combined_salt
from twisted_vllm.config.settings import Server
from twisted_vllm.upstreams.kv_index import CacheIndex
from twisted_vllm.upstreams.kv_prompts import ExactPrefixTable, KnownPrompts, block_size_of
from twisted_vllm.upstreams.prefix_table import CacheTable
from twisted_vllm.upstreams.tokenizing import PromptTokenizer, question

if TYPE_CHECKING:
    from twisted_vllm.upstreams.kv_events import KvEventSubscriber

#: tokens that vLLM can have; others are no prompt
_TOKEN_LIMIT = 1 << 32
#: seconds after which half of what was expected in the caches is no longer expected
EXPECTED_SECONDS = 2.0


class KvCaches:
    """Follows the KV events of all servers that publish them."""

    def __init__(self, reactor: Any, clock: IReactorTime, tokenizer: PromptTokenizer) -> None:
        """Follow no server yet.

        Args:
            reactor: the reactor.
            clock: its clock.
            tokenizer: asks servers for the tokens of prompts.
        """
        self._reactor = reactor
        self._tokenizer = tokenizer
        self._prompts = KnownPrompts()
        self._subscribers: dict[str, tuple[Server, KvEventSubscriber]] = {}
        self._context: Any = None
        self._aging = LoopingCall(self._age)
        self._aging.clock = clock

    def __len__(self) -> int:
        return len(self._subscribers)

    def configure(self, servers: Iterable[Server]) -> None:
        """Follow these servers, as far as they publish events, and no others."""
        wanted = {each.name: each for each in servers if each.kv_events is not None}
        for name, (server, subscriber) in list(self._subscribers.items()):
            known = wanted.get(name)
            if known is None or _source(known) != _source(server):
                subscriber.stop()
                del self._subscribers[name]
        for name, server in wanted.items():
            if name not in self._subscribers:
                self._subscribers[name] = (server, self._subscribe(server))
        if self._subscribers and not self._aging.running:
            self._aging.start(EXPECTED_SECONDS, now=False)
        elif not self._subscribers and self._aging.running:
            self._aging.stop()

    def stop(self) -> None:
        """Follow no server any more."""
        self.configure(())
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def index_of(self, server: str) -> CacheIndex | None:
        """Return the index of a server, by its name; None if it has none, or it is not current."""
        found = self._subscribers.get(server)
        return None if found is None else found[1].index

    def table(self, table: CacheTable) -> ExactPrefixTable:
        """Return a table of what was sent where, corrected by what is in the caches."""
        return ExactPrefixTable(table, self._prompts, self.index_of, self._subscribers)

    def prepare(
        self, servers: Sequence[Server], prefix: Sequence[int], body: bytes, model: str, salt: str | None
    ) -> Deferred[None] | None:
        """Find out the tokens of a prompt before it is placed, if that is needed.

        Args:
            servers: the servers of its model.
            prefix: the hashes of the blocks of its text.
            body: the JSON body of the request, a chat or a completion.
            model: the servers' name of the model.
            salt: the ``cache_salt`` that the gateway sends for its key.

        Returns:
            A Deferred that fires when it can be placed, and fails only if it is cancelled; None if it can be placed at
            once.
        """
        size = block_size_of([each.name for each in servers], self.index_of) if prefix and len(servers) > 1 else 0
        if not size or self._prompts.knows_enough(prefix, size):
            return None
        asked = question(body, model)
        if asked is None:
            return None
        own = asked.salt
        if salt and own is not None:
            salt = combined_salt(salt, own)
        asking = self._tokenizer.ask(servers[prefix[-1] % len(servers)], asked)
        given_up = False

        def give_up(_: Deferred[None]) -> None:
            nonlocal given_up
            given_up = True
            asking.cancel()

        def told(tokens: list[int] | None) -> None:
            if tokens and min(tokens) >= 0 and max(tokens) < _TOKEN_LIMIT:
                adapter = self._adapter(servers, model)
                self._prompts.learn(prefix, tokens, size, adapter=adapter, salt=salt or own)
            if not given_up:
                ready.callback(None)

        ready: Deferred[None] = Deferred(give_up)
        asking.addCallback(told)
        # what does not decide is asked for to see whether that changes
        return ready if self._is_trusted(servers) else None

    def _is_trusted(self, servers: Sequence[Server]) -> bool:
        indices = [self.index_of(each.name) for each in servers]
        return any(index is not None and index.trusted for index in indices)

    def _adapter(self, servers: Sequence[Server], model: str) -> str | None:
        """Return the model's name if it is a LoRA adapter: servers name those in their events."""
        indices = [self.index_of(each.name) for each in servers]
        return model if any(index is not None and model in index.adapters for index in indices) else None

    def _subscribe(self, server: Server) -> KvEventSubscriber:
        import zmq

        from twisted_vllm.upstreams.kv_events import KvEventSubscriber

        if self._context is None:
            self._context = zmq.Context()
        return KvEventSubscriber(server, self._context, self._reactor)

    def _age(self) -> None:
        for _, subscriber in self._subscribers.values():
            subscriber.age()


def _source(server: Server) -> tuple[str | None, str | None]:
    return server.kv_events, server.kv_events_replay
