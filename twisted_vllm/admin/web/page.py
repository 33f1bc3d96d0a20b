"""Declares pages. Each names the route of the admin API that decides who may see it.

::

    pages = Pages()

    @pages.get("/ui/keys", needs="GET /key/list", title="Keys", group="Access")
    async def list_keys(call: PageCall) -> bytes:
        found = await call.get("/key/list", page=call.query.get("page", "1"))
        return call.render("keys/list.html", found=found)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, urlencode

import attrs
import msgspec
from twisted.web.iweb import IRequest

from twisted_vllm.admin.access import Extent
from twisted_vllm.admin.authorization import session_of
from twisted_vllm.admin.context import AdminContext
from twisted_vllm.admin.responses import send
from twisted_vllm.admin.web.operations import Operations
from twisted_vllm.admin.web.sign_in import SignIn
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.roles import Standing, reads_everything, standing_of
from twisted_vllm.auth.sessions import Session
from twisted_vllm.errors import InvalidRequest

#: the field of a form, and the header of a script's request, that proves where it comes from
FORM_FIELD, FORM_HEADER = "anti_forgery", b"x-anti-forgery"
#: fields of a form
MOST_FIELDS = 1_000

#: on every answer of the console (CSP 3, Fetch, HTML)
SECURITY_HEADERS: list[tuple[bytes, bytes]] = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=()"),
]

_HTML = b"text/html; charset=utf-8"


@attrs.frozen
class Events:
    """What a page's stream of events sends.

    Attributes:
        interval: seconds between two messages, at least 1.
        produce: returns the next message: anything that is encoded as JSON, or `msgspec.Raw`.
    """

    interval: float
    produce: Callable[[], Awaitable[Any]]


@attrs.frozen(kw_only=True)
class Page:
    """A page, or what a form or script of a page asks for.

    Attributes:
        method: the HTTP method.
        path: the path, with parameters as Klein writes them.
        handler: answers a request; an `Events` is sent as a stream.
        needs: the route of the admin API that the caller must be able to use; empty for every session.
        title: its name in the navigation; empty for one that does not stand there.
        group: the part of the navigation.
        open: whether it needs no session.
    """

    method: str
    path: str
    handler: PageHandler
    needs: str = ""
    title: str = ""
    group: str = ""
    open: bool = False


class Pages:
    """The pages of a subject, in the order of their declarations. The keyword arguments are attributes of `Page`."""

    def __init__(self) -> None:
        self._pages: list[Page] = []

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages)

    def get(self, path: str, **options: Any) -> Callable[[PageHandler], PageHandler]:
        """Declare a page, or a part of one."""
        return self._declare("GET", path, options)

    def post(self, path: str, **options: Any) -> Callable[[PageHandler], PageHandler]:
        """Declare what a form or a script sends. It was checked that a page of the same session sent it."""
        return self._declare("POST", path, options)

    def events(self, path: str, **options: Any) -> Callable[[PageHandler], PageHandler]:
        """Declare a stream of server-sent events; the handler returns `Events`."""
        return self._declare("GET", path, options)

    def _declare(self, method: str, path: str, options: Mapping[str, Any]) -> Callable[[PageHandler], PageHandler]:
        def declare(handler: PageHandler) -> PageHandler:
            self._pages.append(Page(method=method, path=path, handler=handler, **options))
            return handler

        return declare


class PageConsole(Protocol):
    """What pages use of `twisted_vllm.admin.web.console.Console`.

    Attributes:
        context: the context of the admin app.
        operations: the operations of the admin API.
        sign_in: the sessions.
        origin_of: returns where the browser of a request believes to be.
        pages: all pages.
        parts: what single pages need besides, by name.
    """

    context: AdminContext
    operations: Operations
    sign_in: SignIn
    pages: Sequence[Page]
    origin_of: Callable[[IRequest], str]
    parts: Mapping[str, Any]

    def url(self, request: IRequest, path: str) -> str:
        """Return the path of a page as the browser knows it."""

    def render(self, call: PageCall, template: str, values: Mapping[str, Any], fragment: bool) -> bytes:
        """Return a page, or its block ``content``."""

    def render_block(self, call: PageCall, template: str, block: str, values: Mapping[str, Any]) -> bytes:
        """Return one block of a template."""

    async def read_form(self, request: IRequest) -> dict[str, list[str]]:
        """Return the fields of the form in the body of a request."""


class PageCall:
    """One request for a page, of a caller who may see it.

    Attributes:
        request: the HTTP request.
        console: the console.
        context: the context of the admin app.
        page: the declaration of the page.
        principal: who asks.
        session: the caller's session; None in open mode, and on open pages.
        path: the parameters in the path, by name.
        query: the parameters of the query, as texts.
    """

    def __init__(
        self,
        request: IRequest,
        console: PageConsole,
        page: Page,
        principal: Principal | None,
        path: Mapping[str, str],
        query: Mapping[str, str],
    ) -> None:
        self.request = request
        self.console = console
        self.context: AdminContext = console.context
        self.page = page
        self._principal = principal
        self.session: Session | None = session_of(request)
        self.path = path
        self.query = query

    @property
    def principal(self) -> Principal:
        """Who asks; there is nobody on an open page."""
        assert self._principal is not None
        return self._principal

    @property
    def standing(self) -> Standing:
        """Who that is to the admin API."""
        return standing_of(self.principal)

    @property
    def reads_everything(self) -> bool:
        """Whether the caller sees everything, and not only what is its own."""
        return reads_everything(self.principal)

    @property
    def is_fragment(self) -> bool:
        """Whether htmx asks for a part of a page that is there already."""
        headers = self.request.requestHeaders
        return headers.hasHeader(b"hx-request") and not headers.hasHeader(b"hx-history-restore-request")

    @property
    def origin(self) -> str:
        """Where the browser believes to be, such as ``https://gateway.example.com``, without a path."""
        return self.console.origin_of(self.request)

    # operations

    def extent(self, route: str) -> Extent:
        """Return how much of a route of the admin API the caller may use: ``POST /key/generate``."""
        return self.console.operations.extent(route, self.principal)

    def may(self, route: str) -> bool:
        """Return whether the caller may use a route at all."""
        return self._principal is not None and self.extent(route) is not Extent.NONE

    async def get(self, route: str, path: Mapping[str, str] | None = None, /, **query: Any) -> Any:
        """Return the answer of a GET route of the admin API; parameters that are None are left out.

        Raises:
            GatewayError: as the API answers.
        """
        return await self.console.operations.call(self.request, f"GET {route}", query, path or {})

    async def raw(self, route: str, /, **query: Any) -> msgspec.Raw:
        """Return the answer of a GET route as `get`, not decoded: to pass it on to a script."""
        return await self.console.operations.encoded(self.request, f"GET {route}", query, {})

    async def post(self, route: str, body: Mapping[str, Any], /, path: Mapping[str, str] | None = None) -> Any:
        """Return the answer of a POST route, as `get`."""
        return await self.console.operations.call(self.request, f"POST {route}", body, path or {})

    async def change(self, method: str, route: str, body: Mapping[str, Any], path: Mapping[str, str]) -> Any:
        """Return the answer of a PATCH, PUT or DELETE route, as `get`."""
        return await self.console.operations.call(self.request, f"{method} {route}", body, path)

    async def file(self, route: str, /, **query: Any) -> bytes:
        """Answer as a GET route of the API does, with its headers: for downloads."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return await self.console.operations.answer(self.request, f"GET {route}", given)

    # what the browser sent

    async def form(self) -> dict[str, list[str]]:
        """Return the fields of the form that was sent, without the proof of its origin.

        Raises:
            InvalidRequest: the body is no form.
        """
        fields = await self.console.read_form(self.request)
        return {name: values for name, values in fields.items() if name != FORM_FIELD}

    # the answer

    def render(self, template: str, /, status: int = 200, **values: Any) -> bytes:
        """Return a page; for htmx only its block ``content``.

        Args:
            template: the file of the template.
            status: the status of the answer.
            values: what the template shows.
        """
        return self._send(self.console.render(self, template, values, self.is_fragment), status)

    def fragment(self, template: str, block: str, /, status: int = 200, **values: Any) -> bytes:
        """Return one block of a template, whoever asks."""
        return self._send(self.console.render_block(self, template, block, values), status)

    def _send(self, body: bytes, status: int) -> bytes:
        headers = [(b"content-type", _HTML), (b"vary", b"hx-request")]
        return send(self.request, status, headers, body)

    def redirect(self, path: str, /, **query: str) -> bytes:
        """Send the browser to another page of the console.

        Args:
            path: its path, such as ``/ui/keys``.
            query: its parameters.
        """
        target = self.console.url(self.request, path) + (f"?{urlencode(query)}" if query else "")
        if self.is_fragment:
            return send(self.request, 204, [(b"hx-redirect", target.encode("ascii"))], b"")
        return send(self.request, 303, [(b"location", target.encode("ascii"))], b"")


#: answers a request for a page
PageHandler = Callable[[PageCall], Awaitable[Any]]


def parse_form(body: bytes) -> dict[str, list[str]]:
    """Return the fields of a form (``application/x-www-form-urlencoded``), with all values of each.

    Raises:
        InvalidRequest: it is none, or has too many fields.
    """
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError:
        raise InvalidRequest("The form is not valid: it must be percent-encoded UTF-8.") from None
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        if "\0" in value:
            raise InvalidRequest(f"`{name[:64]}` has a NUL character, which nothing has that is kept.")
        found.setdefault(name, []).append(value.replace("\r\n", "\n"))
    return found


def request_context(request: IRequest) -> Any:
    """Return the context of a request; the type is not IRequest's: the gateway's own request has one."""
    return cast(Any, request).context
