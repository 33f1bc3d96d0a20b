"""The simulator as a resource of twisted.web.

It speaks as vLLM 0.32.0 does and says that it is no such thing: in the header ``server: twisted-vllm-simulator``,
in ``/version``, and in every text that it writes. What the header ``x-simulate`` can make it do wrong is told in
``twisted_vllm.simulator.faults``.
"""

from __future__ import annotations

from urllib.parse import parse_qs, unquote

from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.exchange import Exchange
from twisted_vllm.simulator.faults import HEADER, NO_FAULTS, Ending, Faults, parse_faults
from twisted_vllm.simulator.realtime import Sessions, asks_for_websocket
from twisted_vllm.simulator.refusals import Refusal, simulated_failure
from twisted_vllm.simulator.replies import Answer, Call, Reply
from twisted_vllm.simulator.routes import answer, may_call, refused
from twisted_vllm.simulator.settings import SimulatorSettings


def make_resource(settings: SimulatorSettings, clock: IReactorTime) -> SimulatorResource:
    """Make a simulated server.

    Args:
        settings: what to be.
        clock: tells the time and calls later; a ``Clock`` in tests.

    Returns:
        A leaf resource, to be the root of a ``Site`` or of ``treq.testing.RequestTraversalAgent``.
    """
    return SimulatorResource(Engine(settings, clock.seconds), clock)


@implementer(IResource)
class SimulatorResource:
    """Answers every path.

    Attributes:
        engine: the state of the simulated server, to be looked at in tests.
    """

    isLeaf = True

    def __init__(self, engine: Engine, clock: IReactorTime) -> None:
        self.engine = engine
        self._clock = clock
        self._sessions = Sessions(engine, clock)

    def getChildWithDefault(self, name: bytes, request: IRequest) -> IResource:
        """Return itself: a leaf is never asked, except by a parent that was told otherwise."""
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse: a leaf has no children.

        Raises:
            TypeError: always.
        """
        raise TypeError("the simulator answers every path below it: put it beside, not above, another resource")

    def render(self, request: Request) -> bytes | int:
        """Begin to answer a request."""
        call = _call_of(request)
        if asks_for_websocket(request) and may_call(call, self.engine):
            return self._sessions.resource.render_GET(request)
        reply, faults = self._decide(call)
        Exchange(self._clock, self.engine, request, reply, faults).start()
        return NOT_DONE_YET

    def _decide(self, call: Call) -> tuple[Reply, Faults]:
        faults = NO_FAULTS
        try:
            faults = parse_faults(call.header(HEADER))
            if faults.status is not None:
                raise simulated_failure(faults.status)
        except Refusal as refusal:
            return refused(call, refusal), faults
        reply = answer(call, self.engine)
        if faults.ending is Ending.ERROR_EVENT and isinstance(reply, Answer):
            reply = refused(call, Refusal("Internal server error", status=500, type="InternalServerError"))
        return reply, faults


def _call_of(request: Request) -> Call:
    # the raw target, not request.path and request.args: those were cut and decoded in twisted.web's own way
    path, _, query = request.uri.decode("latin-1").partition("?")
    headers = request.requestHeaders

    def header(name: str) -> str:
        values = headers.getRawHeaders(name, [])
        return values[0] if values else ""

    content = request.content
    # twisted.web gives every request that it renders a body, if an empty one
    assert content is not None
    content.seek(0)
    return Call(
        method=request.method.decode("latin-1"),
        path=unquote(path),
        query=parse_qs(query, keep_blank_values=True),
        header=header,
        body=content.read(),
    )
