"""Tells the other workers what this one learns of servers' caches and of stored responses.

Both are hints that may be wrong. So they are told in batches, and what is too much for a batch is not told at all: its
prompts are then found in the cache of their server by this worker alone.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from twisted_vllm.upstreams.policies import Policy, RoutingRequest
from twisted_vllm.upstreams.response_places import ResponsePlaces
from twisted_vllm.workers.siblings import Siblings

#: the topics of messages
PREFIXES, PLACES = "servers.prefixes", "servers.places"

#: blocks of prompts in a batch, and responses
MOST_BLOCKS, MOST_PLACES = 32_768, 1_000


class Sent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A request that was sent, for the policy of a model.

    Attributes:
        model: the name of the model group.
        server: the server's name, as the policy knows it.
        prefix: the hashes of the prompt's blocks.
    """

    model: str
    server: str
    prefix: tuple[int, ...]


class Place(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The server that has a stored response."""

    response: str
    server: str


class SharedPlaces(ResponsePlaces):
    """The servers of stored responses, those included that other workers learned."""

    def __init__(self, siblings: Siblings) -> None:
        """Know nothing; `siblings` are the other processes."""
        super().__init__()
        self._siblings = siblings
        self._learned: list[Place] = []
        siblings.on(PLACES, list[Place], self._told)

    def keep(self, response_id: str, server: str) -> None:
        """Remember the name of the server that has a response."""
        super().keep(response_id, server)
        if len(self._learned) < MOST_PLACES:
            self._learned.append(Place(response_id, server))

    def tick(self) -> None:
        """Tell what was learned since the last call."""
        if self._learned:
            learned, self._learned = self._learned, []
            self._siblings.share(PLACES, learned)

    def _told(self, message: list[Place], sender: int) -> None:
        for place in message:
            super().keep(place.response, place.server)


class SharedPrefixes:
    """What was sent where, for policies that route by the prompt.

    Attributes:
        untold: how many requests were not told, because there were too many.
    """

    def __init__(self, siblings: Siblings, policy_of: Callable[[str], Policy | None]) -> None:
        """Set up.

        Args:
            siblings: the other processes.
            policy_of: returns the policy of a model group, by its name; None if there is none.
        """
        self.untold = 0
        self._siblings = siblings
        self._policy_of = policy_of
        self._sent: list[Sent] = []
        self._blocks = 0
        siblings.on(PREFIXES, list[Sent], self._told)

    def sent(self, model: str, server: str, request: RoutingRequest) -> None:
        """Note that this worker sent a request."""
        self._blocks += len(request.prefix) + 1
        if self._blocks > MOST_BLOCKS:
            self.untold += 1
            return
        self._sent.append(Sent(model, server, request.prefix))

    def tick(self) -> None:
        """Tell what was sent since the last call."""
        if self._sent:
            sent, self._sent = self._sent, []
            self._siblings.share(PREFIXES, sent)
        self._blocks = 0

    def _told(self, message: list[Sent], sender: int) -> None:
        for each in message:
            policy = self._policy_of(each.model)
            if policy is not None and policy.reads_prompt:
                policy.sent(each.server, RoutingRequest(prefix=each.prefix))
