"""Large forms whose model decides: held until they have named it, then passed on, and watched to their end.

A second model field, or a part that could be one to another reader, breaks the form off before a byte of it reaches the
server, which reads a form to its end before it acts on any of it (vLLM 0.32: Starlette's ``Request.form``, in which the
last of two equal fields wins).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from twisted_vllm.bodies.multipart import FormScan, content_for
from twisted_vllm.errors import GatewayError, ModelUndetermined
from twisted_vllm.http.headers import is_form
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.form_spool import InThread, Spool
from twisted_vllm.proxy.relay import RequestBody

#: bytes up to which a form of known length is held whole instead: then it can be sent again, and is judged beforehand
HELD_WHOLE = 1_048_576


def streams(request: GatewayRequest) -> bool:
    """Tell whether `request` has a form that is not held whole."""
    return is_form(request.head.first) and (request.body_length is None or request.body_length > HELD_WHOLE)


class _Is(Enum):
    HELD = auto()
    DECIDED = auto()
    PASSING = auto()
    OVER = auto()


class FormBody(RequestBody):
    """A form, from its first byte to the last. While it is held, it is its request's `Work`.

    Attributes:
        model: the model that it names, or None.
        fault: why its model cannot be told, if it cannot.
    """

    def __init__(
        self,
        request: GatewayRequest,
        dropped: frozenset[bytes],
        *,
        in_thread: InThread,
        limit: int,
        on_model: Callable[[FormBody], None],
    ) -> None:
        """Make it.

        Args:
            request: whose it is.
            dropped: as for `RequestBody`.
            in_thread: runs a function in another thread.
            limit: bytes up to the model's field, in bytes.
            on_model: called once, when `model` and `fault` are known.
        """
        super().__init__(request, dropped)
        self.model: str | None = None
        self.fault: ModelUndetermined | None = None
        self._spool = Spool(in_thread, limit)
        self._on_model = on_model
        self._scan: FormScan | None = None
        self._is = _Is.HELD
        self._name: bytes | None = None
        # what came since the model was known, until it can be passed on
        self._backlog: list[bytes] = []
        self._came_whole = False
        self._paused = self._replaying = False

    # held

    def hold_for_model(self) -> None:
        """Begin to read."""
        request = self._request
        request.work = self
        try:
            self._scan = FormScan(request.head.first[b"content-type"])
        except ModelUndetermined as fault:
            self._decide(fault)
        if not request.finished:
            request.ask_for_body()
            request.stream_body(self._piece)

    def cancel(self) -> None:
        """The client has gone."""
        self._is = _Is.OVER
        self._spool.close()

    def _piece(self, data: bytes, last: bool) -> None:
        self._came_whole = last
        if self._is is _Is.HELD:
            self._look_for_model(data, last)
        elif self._is is _Is.PASSING and not self._replaying:
            self._pass_on(data)
        elif self._is is not _Is.OVER:
            self._backlog.append(data)

    def _look_for_model(self, data: bytes, last: bool) -> None:
        scan = self._scan
        assert scan is not None
        try:
            try:
                self._keep(scan.feed(data))
                if last and scan.model is None:
                    scan.finish()
            except ModelUndetermined as fault:
                self._scan = None
                self._keep(scan.unjudged)
                self._decide(fault)
            else:
                if last and scan.model is None:
                    self._scan = None
                    self._keep(scan.unjudged)
                if last or scan.model is not None:
                    self.model = scan.model
                    self._decide(None)
        except GatewayError as error:
            self.cancel()
            self._request.answer(error)

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        kept = self._spool.write(data)
        if kept is not None:
            self._request.pause_body()
            kept.addCallbacks(self._kept, self._broke)

    def _kept(self, _: None) -> None:
        if self._is is _Is.HELD:
            self._request.resume_body()
        elif self._is is _Is.PASSING:
            self._replay()

    def _broke(self, failure: Failure) -> None:
        """The file cannot be written or read."""
        if self._is is _Is.PASSING:
            self._give_up(failure)
        elif self._is is not _Is.OVER:
            self.cancel()
            self._request.processingFailed(failure)

    def _decide(self, fault: ModelUndetermined | None) -> None:
        self._is = _Is.DECIDED
        self.fault = fault
        # what is to come of it stays with the client until the server takes it
        self._request.pause_body()
        self._request.work = None
        self._on_model(self)
        if self._request.finished:
            self.cancel()

    def name_model(self, name: str | None) -> None:
        """Say by which name the server knows the model; None is the form's own.

        Raises:
            ModelUndetermined: the name cannot stand in a form.
        """
        if self.model is None:
            return
        own = self.model.encode("utf-8")
        self._name = own if name is None else content_for(name)
        if isinstance(self.length, int):
            self.length += len(self._name) - len(own)

    # passing on

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the form to `consumer`, beginning with what was held; the Deferred fires at its end."""
        self._consumer = consumer
        if self._is is _Is.DECIDED:
            self._is = _Is.PASSING
            self._replaying = True
            if not self._spool.busy:
                self._replay()
        return self._done

    def hold(self) -> None:
        """Do nothing: it holds itself."""

    def pauseProducing(self) -> None:
        """Read no more, from the client or of what was held."""
        self._paused = True
        self._request.pause_body()

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        if self._replaying:
            self._replay()
        elif self._is is _Is.PASSING:
            self._request.resume_body()

    def stopProducing(self) -> None:
        """Drop it, and what is still to come of it."""
        self.cancel()
        super().stopProducing()

    def _replay(self) -> None:
        if self._is is _Is.PASSING and not self._paused and not self._spool.busy:
            self._spool.read().addCallbacks(self._replayed, self._broke)

    def _replayed(self, data: bytes) -> None:
        consumer = self._consumer
        if self._is is not _Is.PASSING or consumer is None:
            return
        if data:
            self._write(consumer, data)
            self._replay()
            return
        self._replaying = False
        self._spool.close()
        if self._name is not None:
            self._write(consumer, self._name)
        backlog, self._backlog = b"".join(self._backlog), []
        self._pass_on(backlog)
        if self._is is _Is.PASSING and not self._paused:
            self._request.resume_body()

    def _pass_on(self, data: bytes) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        scan = self._scan
        last = self._came_whole
        try:
            if scan is not None:
                data = scan.feed(data)
                if last:
                    scan.finish()
        except ModelUndetermined as fault:
            self._give_up(Failure(fault))
            return
        if data:
            self._write(consumer, data)
        if last:
            self._is = _Is.OVER
            self._consumer = None
            self._done.callback(None)

    def _write(self, consumer: IConsumer, data: bytes) -> None:
        if self.watch is not None:
            self.watch(data)
        consumer.write(data)

    def _give_up(self, failure: Failure) -> None:
        """The server must not take what it has for the form."""
        self.cancel()
        self._consumer = None
        self._done.errback(failure)
