"""What a request in flight may be doing, and how much is told of such requests."""

from __future__ import annotations

from typing import Literal, TypeAlias

#: what a request in flight is doing
State: TypeAlias = Literal["reading_body", "preparing", "queued", "waiting", "streaming", "paused", "tunnel"]

#: its body is still arriving
READING_BODY: State = "reading_body"
#: it waits for something of the gateway: Redis, a server's word about its models, a pause before it is sent again
PREPARING: State = "preparing"
#: it waits for a server with room
QUEUED: State = "queued"
#: it waits for the first byte of its answer
WAITING: State = "waiting"
#: its answer is being relayed
STREAMING: State = "streaming"
#: likewise, but its client reads so slowly that the gateway reads no more from the server
PAUSED: State = "paused"
#: it is a WebSocket
TUNNEL: State = "tunnel"

#: the most requests that a report names
MOST_ROWS = 500
#: the most models, servers and keys that a report counts
MOST_NAMES = 200
