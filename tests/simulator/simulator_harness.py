"""A simulator in memory: requests without sockets, and time that passes when a test says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from twisted_vllm.simulator.resource import make_resource
from twisted_vllm.simulator.settings import SimulatorSettings

NOW = 1_700_000_000


@attrs.frozen
class Got:
    """An answer, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of its server-sent events, ``[DONE]`` as a string."""
        return [event for _, event in self.named_events]

    @property
    def named_events(self) -> list[tuple[str, Any]]:
        """The names and the data of its server-sent events."""
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
        return found


@implementer(IBodyProducer)
class Bytes:
    """A request's body that is sent at once: treq's own asks the real reactor for its turns."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


class Pending(Protocol):
    """An answer on its way."""

    def __init__(self) -> None:
        self.response: IResponse | None = None
        self.body = b""
        self.ended: Failure | None = None
        self.waiting: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.body += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason

    def begin(self, response: IResponse) -> None:
        self.response = response
        response.deliverBody(self)

    def fail(self, reason: Failure) -> None:
        self.ended = reason

    def disconnect(self) -> None:
        """Close the connection in the middle of the body."""
        assert self.transport is not None
        self.transport.loseConnection()

    def cancel(self) -> None:
        """Close the connection before the head has come."""
        self.waiting.cancel()

    @property
    def got(self) -> Got:
        assert self.response is not None
        headers = {
            name.decode().lower(): values[0].decode() for name, values in self.response.headers.getAllRawHeaders()
        }
        # Twisted's client keeps this header to itself and tells its value
        headers.setdefault("content-length", str(self.response.length))
        return Got(self.response.code, headers, self.body)


class Simulator:
    """One simulated server in memory."""

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.resource = make_resource(settings or SimulatorSettings(models=("small", "large")), self.clock)
        self.engine = self.resource.engine
        self._agent = RequestTraversalAgent(self.resource)

    def start(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Pending:
        """Send a request; a body that is not bytes goes as JSON."""
        sent = {"content-type": "application/json"} if body is not None else {}
        fields = Headers({name: [value] for name, value in {**sent, **(headers or {})}.items()})
        producer = None
        if body is not None:
            producer = Bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
        pending = Pending()
        waiting = self._agent.request(method.encode(), b"http://vllm.test" + path.encode(), fields, producer)
        pending.waiting = waiting.addCallbacks(pending.begin, pending.fail)
        self.flush()
        return pending

    def advance(self, seconds: float) -> None:
        """Let time pass, and what was written arrive."""
        self.clock.advance(seconds)
        self.flush()

    def flush(self) -> None:
        """Let what was written arrive."""
        # the head arrives first; only then does the client take the body
        for _ in range(3):
            self._agent.flush()

    def call(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Got:
        """Send a request and wait for the end of its answer."""
        pending = self.start(method, path, body, headers)
        while pending.ended is None:
            assert self.clock.getDelayedCalls(), "the answer does not end, and nothing is planned"
            self.advance(0.01)
        return pending.got

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Got:
        return self.call("POST", path, body, headers)

    def get(self, path: str) -> Got:
        return self.call("GET", path)

    def metric(self, name: str, model: str = "small", **labels: str) -> float:
        """Read one value of ``/metrics``."""
        wanted = [f'model_name="{model}"', *(f'{label}="{value}"' for label, value in labels.items())]
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(f"vllm:{name}{{") and all(label in line for label in wanted):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric vllm:{name} with {wanted}")


def user(content: object) -> list[dict[str, object]]:
    """Return a conversation of one message."""
    return [{"role": "user", "content": content}]
