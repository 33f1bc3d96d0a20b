"""Where the console is mounted. Templates and pages are loaded at the first request, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twisted_vllm.admin.authorization import AdminAuthenticator
from twisted_vllm.admin.context import AdminContext
from twisted_vllm.admin.responses import send_error, send_failure
from twisted_vllm.admin.web.sign_in import SignIn
from twisted_vllm.auth.sessions import EndedSessions, SessionSealer
from twisted_vllm.config.console import ConsoleSettings
from twisted_vllm.errors import NotFound

if TYPE_CHECKING:
    # it loads the templates' library
    from twisted_vllm.admin.web.console import Console

#: runs a function, perhaps in another thread
InThread = Callable[..., Any]


@implementer(IResource)
class ConsoleMount(Resource):
    """Everything below ``/ui``.

    Attributes:
        parts: what single pages need besides the admin API, by name.
        ended: the sessions that were ended before their time.
    """

    isLeaf = True

    def __init__(
        self,
        *,
        context: AdminContext,
        sealer: Callable[[], SessionSealer],
        settings: ConsoleSettings,
        origin_of: Callable[[IRequest], str],
        prefix_of: Callable[[IRequest], str],
        tell_ended: Callable[[str, float], None] = lambda id, until: None,
        in_thread: InThread = maybeDeferred,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        """Make it; nothing is loaded yet.

        Args:
            context: the context of the admin app.
            sealer: returns what seals sessions now.
            settings: the settings of the console.
            origin_of: returns where the browser of a request believes to be.
            prefix_of: returns the path that proxies in front cut off.
            tell_ended: tells the other processes of a session that was ended: its id and its end.
            in_thread: runs a function in another thread.
            parts: what single pages need besides the admin API, by name.
        """
        super().__init__()
        authenticator: AdminAuthenticator = context.authenticator
        self.parts = dict(parts or {})
        self.ended = EndedSessions()
        self._settings = settings
        self._context = context
        self._origin_of = origin_of
        self._prefix_of = prefix_of
        self._in_thread = in_thread
        self._sign_in = SignIn(
            authenticator=authenticator,
            sealer=sealer,
            ended=self.ended,
            tell_ended=tell_ended,
            settings=lambda: self._settings,
            now=lambda: context.now().timestamp(),
            origin_of=origin_of,
            prefix_of=prefix_of,
        )
        self._resource: IResource | None = None
        self._waiting: list[Deferred[None]] | None = None

    def reconfigure(self, settings: ConsoleSettings) -> None:
        """Use other settings from the next request on."""
        self._settings = settings

    def render(self, request: IRequest) -> Any:
        """Respond to a request."""
        if not self._settings.enabled:
            return send_error(request, NotFound("This gateway has no console: passthrough.console.enabled is false."))
        if self._resource is not None:
            return cast(Any, self._resource).render(request)
        gone: list[object] = []
        cast(Any, request).notifyFinish().addBoth(gone.append)
        self._load().addCallbacks(self._render_later, self._failed, (request, gone), {}, (request, gone), {})
        return NOT_DONE_YET

    def _load(self) -> Deferred[None]:
        mine: Deferred[None] = Deferred()
        if self._waiting is None:
            self._waiting = [mine]
            self._in_thread(self._make).addBoth(self._loaded)
        else:
            self._waiting.append(mine)
        return mine

    def _make(self) -> Console:
        # Imported here: few gateways are asked for a page, and templates take 8 MiB.
        from twisted_vllm.admin.web.load import load_console

        return load_console(
            context=self._context,
            sign_in=self._sign_in,
            origin_of=self._origin_of,
            prefix_of=self._prefix_of,
            parts=self.parts,
        )

    def _loaded(self, found: Console | Failure) -> None:
        waiting, self._waiting = self._waiting or [], None
        if not isinstance(found, Failure):
            self._resource = found.resource()
        for each in waiting:
            if isinstance(found, Failure):
                each.errback(found)
            else:
                each.callback(None)

    def _render_later(self, _: object, request: IRequest, gone: list[object]) -> None:
        if gone:
            return
        body = cast(Any, self._resource).render(request)
        if body is not NOT_DONE_YET:
            request.write(body)
            request.finish()

    def _failed(self, failure: Failure, request: IRequest, gone: list[object]) -> None:
        if not gone:
            request.write(send_failure(request, failure))
            request.finish()
