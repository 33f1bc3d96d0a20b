"""The console as a resource: sessions, forms, files, and which page answers a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from hmac import compare_digest
from typing import Any, cast
from urllib.parse import quote

from jinja2 import Environment
from klein import Klein
from markupsafe import Markup
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.http import INTERNAL_SERVER_ERROR
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from werkzeug.exceptions import HTTPException
from zope.interface import implementer

from twisted_vllm.admin.access import Extent
from twisted_vllm.admin.authorization import first_headers, session_of
from twisted_vllm.admin.context import AdminContext
from twisted_vllm.admin.parsing import read_query
from twisted_vllm.admin.responses import error_of, send
from twisted_vllm.admin.routing import Route
from twisted_vllm.admin.web.assets import Asset
from twisted_vllm.admin.web.events import EventStream, EventStreams
from twisted_vllm.admin.web.operations import Operations
from twisted_vllm.admin.web.page import (
    FORM_FIELD,
    FORM_HEADER,
    SECURITY_HEADERS,
    Events,
    Page,
    PageCall,
    parse_form,
    request_context,
)
from twisted_vllm.admin.web.sign_in import SignIn
from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import (
    ERROR_HEADER,
    ForgedForm,
    GatewayError,
    MissingApiKey,
    NotFound,
    RouteNotAllowed,
    TokenNotAllowed,
)

#: where the console is
ROOT = "/ui"
_ASSETS = ROOT + "/assets/"
_YEAR = b"public, max-age=31536000, immutable"
_SITE, _ORIGIN, _HOST = b"sec-fetch-site", b"origin", b"host"


class Console:
    """Everything that the pages share.

    Attributes:
        context: the context of the admin app.
        operations: the operations of the admin API.
        sign_in: the sessions.
        pages: all pages.
        streams: the streams of events that are open.
    """

    def __init__(
        self,
        *,
        context: AdminContext,
        routes: Sequence[Route],
        sign_in: SignIn,
        pages: Sequence[Page],
        environment: Environment,
        assets: Mapping[str, Asset],
        origin_of: Callable[[IRequest], str],
        prefix_of: Callable[[IRequest], str],
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        """Make it.

        Args:
            context: the context of the admin app.
            routes: the routes of the admin API.
            sign_in: the sessions.
            pages: all pages.
            environment: the templates.
            assets: the files of the pages.
            origin_of: returns where the browser of a request believes to be.
            prefix_of: returns the path that proxies in front cut off.
            parts: what single pages need besides, by name.
        """
        self.context = context
        self.operations = Operations(context, routes)
        self.sign_in = sign_in
        self.pages: Sequence[Page] = tuple(pages)
        self.streams = EventStreams()
        self.origin_of = origin_of
        self.parts: Mapping[str, Any] = dict(parts or {})
        self._environment = environment
        self._assets = assets
        self._prefix_of = prefix_of
        self._klein = _bound(self)

    @cached_property
    def _navigation(self) -> Sequence[Page]:
        return [page for page in self.pages if page.title]

    # addresses

    def url(self, request: IRequest, path: str) -> str:
        """Return the path of a page as the browser knows it."""
        return self._prefix_of(request) + path

    def asset_url(self, request: IRequest, name: str) -> str:
        """Return the address of a file."""
        return self.url(request, f"{_ASSETS}{name}?v={self._assets[name].version}")

    # pages

    def render(self, call: PageCall, template: str, values: Mapping[str, Any], fragment: bool) -> bytes:
        """Return a page; or its block ``content``, with its title for the browser."""
        if fragment:
            return self.render_block(call, template, "content", values)
        return self._environment.get_template(template).render(self._values(call, values)).encode("utf-8", "replace")

    def render_block(self, call: PageCall, template: str, block: str, values: Mapping[str, Any]) -> bytes:
        """Return one block of a template."""
        found = self._environment.get_template(template)
        context = found.new_context(self._values(call, values))
        return "".join(found.blocks[block](context)).encode("utf-8", "replace")

    def _values(self, call: PageCall, values: Mapping[str, Any]) -> dict[str, Any]:
        request, session = call.request, call.session
        signed_in = call.page.open is False
        word = session.anti_forgery if session is not None else ""
        return {
            "call": call,
            "url": lambda path: self.url(request, path),
            "asset": lambda name: self.asset_url(request, name),
            "anti_forgery": word,
            # stands in every form that is sent by POST
            "proof": lambda: Markup('<input type="hidden" name="{}" value="{}">').format(FORM_FIELD, word),
            "navigation": self._shown(call) if signed_in else {},
            "who": self._who(call) if signed_in else None,
            "can_sign_out": session is not None,
            **values,
        }

    def _shown(self, call: PageCall) -> dict[str, list[Page]]:
        found: dict[str, list[Page]] = {}
        for page in self._navigation:
            if not page.needs or call.may(page.needs):
                found.setdefault(page.group, []).append(page)
        return found

    def _who(self, call: PageCall) -> dict[str, str]:
        principal = call.principal
        return {"name": principal.name, "role": call.standing.value, "user": principal.user_id or ""}

    # requests

    async def read_form(self, request: IRequest) -> dict[str, list[str]]:
        """Return the fields of the form in the body of a request; its body is read once.

        Raises:
            InvalidRequest: the body is no form.
        """
        known = cast(Any, request)
        found: dict[str, list[str]] | None = getattr(known, "console_form", None)
        if found is None:
            found = known.console_form = parse_form(await known.read_body())
        return found

    async def respond(self, request: IRequest, page: Page, path: Mapping[str, str]) -> Any:
        """Answer a request for a page; Klein calls it."""
        principal = None if page.open else await self._caller(request, page)
        if page.method == "POST":
            await self._check_form(request)
        call = PageCall(request, self, page, principal, path, read_query(request))
        answer = await page.handler(call)
        if isinstance(answer, Events):
            await self._stream(call, answer)
            return None
        return answer

    async def _caller(self, request: IRequest, page: Page) -> Principal:
        """Return who asks for a page, and may see it.

        Raises:
            MissingApiKey: nobody is signed in, or not any more.
            RouteNotAllowed: the caller may not see it.
        """
        authenticator = self.context.authenticator
        self.sign_in.attach(request)
        if session_of(request) is None and not authenticator.is_open:
            raise MissingApiKey("Sign in first.")
        await authenticator.find_out(request)
        principal = await authenticator.principal_of(request)
        if page.needs:
            self._check_access(page, principal)
        self.sign_in.renew(request)
        return principal

    def _check_access(self, page: Page, principal: Principal) -> None:
        if self.operations.extent(page.needs, principal) is Extent.NONE:
            raise RouteNotAllowed(
                "Your key may not see this page: it may not call "
                f"{page.needs}. Ask an administrator for a key of a user with another role."
            )

    async def _check_form(self, request: IRequest) -> None:
        """Check that a page of ours sent a form, in the session that it came with.

        Raises:
            ForgedForm: it did not.
        """
        headers = first_headers(request, (_SITE, _ORIGIN, _HOST, FORM_HEADER))
        if headers.get(_SITE, b"same-origin") not in (b"same-origin", b"none"):
            raise ForgedForm("Another site sent this form.")
        origin = headers.get(_ORIGIN)
        if origin is not None and origin.decode("latin-1").lower() != self.origin_of(request).lower():
            raise ForgedForm(
                "This form came from another origin than the console's. Behind a proxy, name it in "
                "passthrough.trusted_proxies and let it send X-Forwarded-Proto and X-Forwarded-Host."
            )
        session = session_of(request)
        if session is None:
            # nobody's cookie can be abused
            return
        given = headers.get(FORM_HEADER)
        if given is None:
            given = (await self.read_form(request)).get(FORM_FIELD, [""])[0].encode("utf-8")
        if not compare_digest(given, session.anti_forgery.encode("ascii")):
            raise ForgedForm("This form belongs to another session. Load the page again, and send it once more.")

    async def _stream(self, call: PageCall, events: Events) -> None:
        request, context = call.request, self.context
        session = call.session
        owner = "" if session is None else session.id
        self.streams.check_room(owner)
        request.setResponseCode(200)
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-accel-buffering", b"no")

        async def goes_on() -> bool:
            if context.readiness().draining or self.sign_in.is_over(request):
                return False
            principal = await context.authenticator.principal_of(request, again=True)
            return not call.page.needs or self.operations.extent(call.page.needs, principal) is not Extent.NONE

        over: Deferred[None] = Deferred()

        def ended(stream: EventStream) -> None:
            self.streams.remove(stream)
            if not over.called:
                over.callback(None)

        stream = EventStream(request, context.clock, events.interval, events.produce, goes_on, ended)
        self.streams.add(stream, owner)
        stream.start()
        # Klein ends a request when its handler is done
        await over

    # answers

    def fail(self, request: IRequest, failure: Failure) -> bytes:
        """Answer a failure: a page that says what is wrong, or for scripts the error in JSON."""
        error = self._not_found(failure) or error_of(failure, request)
        request.setHeader(ERROR_HEADER, error.code.encode("ascii"))
        if isinstance(error, MissingApiKey) or _ends_session(request, error):
            return self._to_sign_in(request, error)
        if _wants_json(request):
            body = error.body(request_context(request).without_secrets)
            return send(request, error.status, [(b"content-type", b"application/json")], body)
        call = PageCall(request, self, _ERROR_PAGE, None, {}, {})
        words = request_context(request).without_secrets(error.message)
        return call.render("error.html", status=error.status, message=words, code=error.code, status_code=error.status)

    def _not_found(self, failure: Failure) -> GatewayError | None:
        if isinstance(failure.value, HTTPException) and (failure.value.code or 500) < INTERNAL_SERVER_ERROR:
            return NotFound("The console has no such page.")
        return None

    def _to_sign_in(self, request: IRequest, error: GatewayError) -> bytes:
        self.sign_in.forget(request)
        if _wants_json(request):
            body = error.body(request_context(request).without_secrets)
            return send(request, 401, [(b"content-type", b"application/json")], body)
        wanted = request.uri.decode("ascii", "replace") if request.method == b"GET" else ROOT
        target = self.url(request, f"{ROOT}/sign-in?next={quote(wanted, safe='')}")
        reason = "" if type(error) is MissingApiKey else f"&reason={quote(error.code)}"
        location = (target + reason).encode("ascii")
        if request.requestHeaders.hasHeader(b"hx-request"):
            return send(request, 401, [(b"hx-redirect", location)], b"")
        return send(request, 303, [(b"location", location)], b"")

    def file(self, request: IRequest, name: str) -> bytes:
        """Answer a request for a file."""
        asset = self._assets.get(name)
        if asset is None or request.method not in (b"GET", b"HEAD"):
            return self.fail(request, Failure(NotFound("The console has no such file.")))
        accepted = request.requestHeaders.getRawHeaders(b"accept-encoding", [b""])
        headers = [(b"content-type", asset.media_type), (b"vary", b"accept-encoding")]
        body = asset.data
        if asset.compressed is not None and any(b"gzip" in each for each in accepted):
            headers.append((b"content-encoding", b"gzip"))
            body = asset.compressed
        body = send(request, 200, headers, body)
        if b"v=" + asset.version.encode("ascii") in request.uri:
            request.setHeader(b"cache-control", _YEAR)
        return body

    def resource(self) -> IResource:
        """Return the resource that serves everything below `ROOT`."""
        return ConsoleResource(self, self._klein)


@implementer(IResource)
class ConsoleResource(Resource):
    """Klein's resource, with the headers that every answer has."""

    isLeaf = True

    def __init__(self, console: Console, app: Klein) -> None:
        super().__init__()
        self._console = console
        self._klein: IResource = app.resource()

    def render(self, request: IRequest) -> Any:
        """Respond to a request."""
        for name, value in SECURITY_HEADERS:
            request.setHeader(name, value)
        path = cast(Any, request).path.decode("ascii", "replace")
        if path.startswith(_ASSETS):
            return self._console.file(request, path.removeprefix(_ASSETS))
        try:
            return self._klein.render(request)
        except Exception:
            return self._console.fail(request, Failure())


def _bound(console: Console) -> Klein:
    app = Klein()
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False

    def fail(self: object, request: IRequest, failure: Failure) -> bytes:
        return console.fail(request, failure)

    app.handle_errors(Exception)(fail)
    for page in console.pages:
        app.route(page.path, methods=[page.method], endpoint=f"{page.method} {page.path}")(_responder(page))
    bound: Klein = app.__get__(console, Console)
    return bound


def _responder(page: Page) -> Callable[..., Awaitable[Any]]:
    async def respond(console: Console, request: IRequest, **path: str) -> Any:
        return await console.respond(request, page, path)

    return respond


async def _nobody(_call: PageCall) -> bytes:
    return b""


#: what an error is shown on
_ERROR_PAGE = Page(method="GET", path=ROOT, handler=_nobody, open=True)


def _ends_session(request: IRequest, error: GatewayError) -> bool:
    """Return whether the user or team of somebody is gone who signed in at a provider."""
    session = session_of(request)
    return isinstance(error, TokenNotAllowed) and session is not None and session.kind == "user"


def _wants_json(request: IRequest) -> bool:
    """Return whether a script asks: for events, or for JSON."""
    accept = b",".join(request.requestHeaders.getRawHeaders(b"accept", [b""]))
    return b"text/html" not in accept and (b"json" in accept or b"event-stream" in accept)
