"""Calls the operations of the admin API from a page, in this process, as the caller of the page.

A page reads and changes nothing in another way: access, counting, parsing and the audit log are the API's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast
from urllib.parse import quote, urlencode

import msgspec
from twisted.web.http_headers import Headers
from twisted.web.iweb import IRequest

from twisted_vllm.admin.access import Access, Extent, extent_of
from twisted_vllm.admin.authorization import session_of
from twisted_vllm.admin.context import AdminContext
from twisted_vllm.admin.routing import PATH_PARAMETER, Route
from twisted_vllm.auth.records import Principal


class OperationRequest:
    """What an operation sees of the request of a page: who asks and from where, but not how the page is answered.

    Attributes:
        context: the context of the page's request.
        console_session: the session of its caller.
        method: the method of the operation; likewise `path`, `uri` and `requestHeaders`.
        status: the status of the operation's answer.
        headers: its headers.
    """

    def __init__(self, page: IRequest, method: str, path: str, query: str) -> None:
        self._page = page
        self.context = cast(Any, page).context
        self.console_session = session_of(page)
        self.method = method.encode("ascii")
        self.path = path.encode("ascii")
        self.uri = self.path + (b"?" + query.encode("ascii") if query else b"")
        self.requestHeaders = Headers({b"accept": [b"application/json"]})
        self.status = 200
        self.headers: dict[bytes, bytes] = {}

    def setResponseCode(self, status: int, message: bytes | None = None) -> None:
        """Keep the status of the answer."""
        self.status = status

    def setHeader(self, name: bytes, value: bytes) -> None:
        """Keep a header of the answer."""
        self.headers[name.lower()] = value

    def getClientAddress(self) -> Any:
        """Return the address of the client's connection."""
        return self._page.getClientAddress()


class Operations:
    """The routes of the admin API, by method and path.

    Attributes:
        context: the context of the admin app.
    """

    def __init__(self, context: AdminContext, routes: Sequence[Route]) -> None:
        """Make it.

        Args:
            context: the context of the admin app.
            routes: its routes.
        """
        self.context = context
        self._listed = routes

    @cached_property
    def _routes(self) -> Mapping[str, Route]:
        return {f"{route.method} {route.path}": route for route in self._listed}

    def route(self, name: str) -> Route:
        """Return a route by its name, such as ``GET /key/list`` or ``POST /key/<string:key>/regenerate``.

        Raises:
            KeyError: the API has no such route.
        """
        return self._routes[name]

    def extent(self, name: str, principal: Principal) -> Extent:
        """Return how much of a route a caller may use."""
        route = self.route(name)
        if route.access is Access.OPEN:
            return Extent.ALL
        return extent_of(route.access, principal, f"/{route.action}", self.context.authenticator.settings.enabled)

    async def call(self, page: IRequest, name: str, given: Mapping[str, Any], path: Mapping[str, str]) -> Any:
        """Call an operation and return its answer, decoded from JSON; the arguments are those of `encoded`."""
        answer = await self.encoded(page, name, given, path)
        return msgspec.json.decode(answer) if bytes(answer) else None

    async def encoded(
        self, page: IRequest, name: str, given: Mapping[str, Any], path: Mapping[str, str]
    ) -> msgspec.Raw:
        """Call an operation and return the JSON of its answer.

        Args:
            page: the request of the page; it is counted and was authenticated already.
            name: the route, as in `route`.
            given: the parameters of a query, as texts, or the fields of a body.
            path: the parameters in the path.

        Raises:
            GatewayError: as the API answers.
        """
        route = self.route(name)
        if route.method == "GET":
            given = {each: str(value) for each, value in given.items() if value is not None}
        filled = PATH_PARAMETER.sub(lambda found: quote(path[found[1]], safe=""), route.path)
        query = urlencode(given) if route.method == "GET" else ""
        request = cast(IRequest, OperationRequest(page, route.method, filled, query))
        answer = await self._perform(route, request, given, path)
        return msgspec.Raw(answer if isinstance(answer, bytes) else msgspec.json.encode(answer))

    async def answer(self, page: IRequest, name: str, given: Mapping[str, Any]) -> bytes:
        """Answer a page's request as the API does: for files, which may be long.

        Raises:
            GatewayError: as the API answers.
        """
        found = await self._perform(self.route(name), page, given, {})
        return found if isinstance(found, bytes) else msgspec.json.encode(found)

    async def _perform(
        self, route: Route, request: IRequest, given: Mapping[str, Any], path: Mapping[str, str]
    ) -> object:
        context, authenticator = self.context, self.context.authenticator
        if route.perform is None:
            return await route.handle(context, request, path)
        principal = await authenticator.caller_of(request, route.access, route.action, again=True)
        if route.access is Access.SELF_SERVICE:
            await authenticator.count_change(principal)
        return await route.perform(context, request, principal, path, given)
