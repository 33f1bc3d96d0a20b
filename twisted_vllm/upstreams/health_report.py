"""What the gateway knows of the health of its servers, entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from twisted_vllm.upstreams.router import ModelGroup

#: the state of a server that sleeps; the other states are those of breakers
SLEEPING = "sleeping"


class EndpointHealth(msgspec.Struct, frozen=True, gc=False):
    """The health of one entry of ``model_list``, or of the default server.

    Attributes:
        model_name: The name that callers use; empty for the default server.
        model: The provider and the server's name of the model; empty for the default server.
        api_base: The server's URL, which has no credentials.
        state: The state of its breaker, or `SLEEPING`.
        reason: Why it is in this state.
        since: Since when, in Unix seconds.
        in_flight: The requests of this gateway at the server.
    """

    model_name: str
    model: str
    api_base: str
    state: str
    reason: str
    since: float
    in_flight: int

    @property
    def is_healthy(self) -> bool:
        """Whether it gets requests."""
        return self.state == "closed"


def endpoints_of(groups: Iterable[ModelGroup]) -> Iterator[EndpointHealth]:
    """Return the health of each entry, in the order of the file."""
    for group in groups:
        for each in group.destinations:
            state = each.state
            breaker = state.breaker
            sleeps = state.sleeping and breaker.closed
            yield EndpointHealth(
                group.name,
                f"hosted_vllm/{each.upstream_model or group.name}" if group.name else "",
                each.server.url.decode("ascii"),
                SLEEPING if sleeps else breaker.state,
                SLEEPING if sleeps else breaker.reason,
                max(breaker.since, state.sleep_changed),
                state.in_flight,
            )
