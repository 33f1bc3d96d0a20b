"""What the gateway knows of the health of its servers, entry by entry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from twisted_vllm.upstreams.router import ModelGroup
from twisted_vllm.upstreams.server_state import ServerState

#: the states of a server that sleeps, and of one that is drained; the other states are those of breakers
SLEEPING, DRAINED = "sleeping", "drained"


def state_in_words(state: ServerState) -> str:
    """Return the state of a server: that of its breaker; if that is closed, whether it is drained, or sleeps."""
    if not state.breaker.closed or not state.rests:
        return state.breaker.state
    return SLEEPING if state.drained is None else DRAINED


def reason_of(state: ServerState) -> str:
    """Return why a server is in the state of `state_in_words`."""
    found = state_in_words(state)
    if found == DRAINED and state.drained is not None:
        return state.drained.reason or DRAINED
    return SLEEPING if found == SLEEPING else state.breaker.reason


def since_of(state: ServerState) -> float:
    """Return since when a server is in the state of `state_in_words`, in Unix seconds."""
    if state.drained is not None and state.breaker.closed:
        return state.drained.since
    return max(state.breaker.since, state.sleep_changed)


class EndpointHealth(msgspec.Struct, frozen=True, gc=False):
    """The health of one entry of ``model_list``, or of the default server.

    Attributes:
        model_name: The name that callers use; empty for the default server.
        model: The provider and the server's name of the model; empty for the default server.
        api_base: The server's URL, which has no credentials.
        state: The state of its breaker, or `SLEEPING` or `DRAINED`.
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
            yield EndpointHealth(
                group.name,
                f"hosted_vllm/{each.upstream_model or group.name}" if group.name else "",
                each.server.url.decode("ascii"),
                state_in_words(state),
                reason_of(state),
                since_of(state),
                state.in_flight,
            )
