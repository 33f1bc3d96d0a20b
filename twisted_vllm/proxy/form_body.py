"""Large multipart forms: buffered up to their model, then forwarded, and checked to their end.

A second field "model", or a part that another reader could take for one, cancels the request before a byte of that part
reaches the server. vLLM 0.32 reads a form to its end before it acts on any of it (Starlette's ``Request.form``, in
which the last of two equal fields wins).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from enum import Enum, auto

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.bodies.multipart import FormScan, content_for, part_for
from twisted_vllm.errors import GatewayError, ModelUndetermined
from twisted_vllm.field_policy.forms import FormFields
from twisted_vllm.http.headers import is_form
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.proxy.form_files import FormFiles, full
from twisted_vllm.proxy.form_spool import FormSpool, InThread
from twisted_vllm.proxy.relay import RequestBody

#: a form of known length up to this many bytes is buffered whole: it is checked before anything is sent, and can be
#: resent
MAX_BUFFERED = 1_048_576


def streams(request: GatewayRequest) -> bool:
    """Return whether `request` has a form that is not buffered whole."""
    return is_form(request.head.first) and (request.body_length is None or request.body_length > MAX_BUFFERED)


class _State(Enum):
    # until the model is known
    BUFFERING = auto()
    # for the server to be chosen
    WAITING = auto()
    SENDING = auto()
    OVER = auto()


class FormBody(RequestBody):
    """A form that is read to its model, then streamed. While it is buffered, it is its request's `Work`.

    Attributes:
        model: the model that it names, or None.
        fault: why its model cannot be determined, or None.
    """

    _log = Logger()

    def __init__(
        self,
        request: GatewayRequest,
        dropped: frozenset[bytes],
        *,
        in_thread: InThread,
        limit: int,
        files: FormFiles,
        on_model: Callable[[FormBody], None],
        fields: FormFields | None = None,
    ) -> None:
        """Make the body.

        Args:
            request: the request.
            dropped: as for `RequestBody`.
            in_thread: runs a function in another thread.
            limit: the maximum number of bytes before the field "model".
            files: bounds the files of all forms.
            on_model: called once, when `model` and `fault` are known.
            fields: checks the fields; None allows any.
        """
        super().__init__(request, dropped)
        self.model: str | None = None
        self.fault: ModelUndetermined | None = None
        self._spool = FormSpool(in_thread, limit, files)
        self._on_model = on_model
        self._fields = fields
        self._scan: FormScan | None = None
        self._state = _State.BUFFERING
        self._name: bytes | None = None
        # what goes before the form
        self._inserted = b""
        # received after the model, not sent yet
        self._backlog: list[bytes] = []
        self._complete = False
        self._paused = self._replaying = False

    # buffering

    def hold_for_model(self) -> None:
        """Start to buffer."""
        request = self._request
        request.work = self
        try:
            self._scan = FormScan(request.head.first[b"content-type"], self._fields)
        except ModelUndetermined as fault:
            self._decide(fault)
        if not request.finished:
            request.ask_for_body()
            request.stream_body(self._piece)

    def cancel(self) -> None:
        """The client has disconnected."""
        self._state = _State.OVER
        self._spool.close()

    def _piece(self, data: bytes, last: bool) -> None:
        self._complete = last
        if self._state is _State.BUFFERING:
            self._find_model(data, last)
        elif self._state is _State.SENDING and not self._replaying:
            self._forward(data)
        elif self._state is not _State.OVER:
            self._backlog.append(data)

    def _find_model(self, data: bytes, last: bool) -> None:
        scan = self._scan
        assert scan is not None
        try:
            try:
                self._buffer(scan.feed(data))
                if last and scan.model is None:
                    self._finish(scan)
            except ModelUndetermined as fault:
                self._scan = None
                self._buffer(scan.unscanned)
                self._decide(fault)
            else:
                if last and scan.model is None:
                    self._scan = None
                    self._buffer(scan.unscanned)
                if last or scan.model is not None:
                    self.model = scan.model
                    self._decide(None)
        except GatewayError as error:
            self.cancel()
            self._request.answer(error)

    def _buffer(self, data: bytes) -> None:
        if not data:
            return
        written = self._spool.write(data)
        if written is not None:
            self._request.pause_body()
            written.addCallbacks(self._buffered, self._spool_failed)

    def _buffered(self, _: None) -> None:
        if self._state is _State.BUFFERING:
            self._request.resume_body()
        elif self._state is _State.SENDING:
            self._replay()

    def _spool_failed(self, failure: Failure) -> None:
        """Fail: the spool's file cannot be written or read."""
        if failure.check(OSError):
            self._log.error(
                "A large form could not be buffered in {directory}: {reason}",
                directory=tempfile.gettempdir(),
                reason=failure.getErrorMessage(),
                once_a_second=True,
            )
        if self._state is _State.SENDING:
            self._break_off(failure)
        elif self._state is not _State.OVER:
            self.cancel()
            if failure.check(OSError, GatewayError):
                self._request.answer(failure.value if isinstance(failure.value, GatewayError) else full())
            else:
                self._request.processingFailed(failure)

    def _decide(self, fault: ModelUndetermined | None) -> None:
        self._state = _State.WAITING
        self.fault = fault
        # stop reading until the server takes the rest
        self._request.pause_body()
        if self._request.room is not None:
            self._request.room.stop_timing()
        self._request.work = None
        self._on_model(self)
        if self._request.finished:
            self.cancel()

    def name_model(self, name: str | None) -> None:
        """Set the model name for the server; None keeps the form's own, or none.

        Raises:
            ModelUndetermined: the name cannot be written in a form.
        """
        if self.model is None:
            if name is not None:
                self._insert(name)
            return
        own = self.model.encode("utf-8")
        self._name = own if name is None else content_for(name)
        if isinstance(self.length, int):
            self.length += len(self._name) - len(own)

    def _insert(self, name: str) -> None:
        """Name the model in a form that names none: the request's path does."""
        before, self._inserted = self._inserted, part_for(self._request.head.first[b"content-type"], name)
        if isinstance(self.length, int):
            self.length += len(self._inserted) - len(before)

    # sending

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the form to `consumer`, first what was buffered; the Deferred fires at its end."""
        self._consumer = consumer
        if self._state is _State.WAITING:
            self._state = _State.SENDING
            self._replaying = True
            if self._inserted:
                self._write(consumer, self._inserted)
            if not self._spool.busy:
                self._replay()
        return self._done

    def hold(self) -> None:
        """Do nothing: the form pauses itself until `startProducing`."""

    def pauseProducing(self) -> None:
        """Stop reading from the client and from the buffer."""
        self._paused = True
        self._request.pause_body()

    def resumeProducing(self) -> None:
        """Resume reading."""
        self._paused = False
        if self._replaying:
            self._replay()
        elif self._state is _State.SENDING:
            self._request.resume_body()

    def stopProducing(self) -> None:
        """Drop the form and everything that still arrives of it."""
        self.cancel()
        super().stopProducing()

    def _replay(self) -> None:
        if self._state is _State.SENDING and not self._paused and not self._spool.busy:
            self._spool.read().addCallbacks(self._replayed, self._spool_failed)

    def _replayed(self, data: bytes) -> None:
        consumer = self._consumer
        if self._state is not _State.SENDING or consumer is None:
            return
        if data:
            self._write(consumer, data)
            self._replay()
            return
        self._replaying = False
        self._spool.close()
        self._request.give_room_back()
        if self._name is not None:
            self._write(consumer, self._name)
        backlog, self._backlog = b"".join(self._backlog), []
        self._forward(backlog)
        if self._state is _State.SENDING and not self._paused:
            self._request.resume_body()

    def _forward(self, data: bytes) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        scan = self._scan
        last = self._complete
        try:
            if scan is not None:
                data = scan.feed(data)
                if last:
                    self._finish(scan)
        except GatewayError as fault:
            self._break_off(Failure(fault))
            return
        if data:
            self._write(consumer, data)
        if last:
            self._state = _State.OVER
            self._consumer = None
            self._done.callback(None)

    def _finish(self, scan: FormScan) -> None:
        scan.finish()
        if self._fields is not None:
            self._fields.finish()

    def _write(self, consumer: IConsumer, data: bytes) -> None:
        if self.watch is not None:
            self.watch(data)
        consumer.write(data)

    def _break_off(self, failure: Failure) -> None:
        """Fail the upload, so that the server does not mistake a part of the form for the whole."""
        self.cancel()
        self._consumer = None
        self._done.errback(failure)
