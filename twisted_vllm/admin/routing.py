"""Declares routes. The decorator of a handler makes both Klein's route and its entry in the OpenAPI document.

Each route declares who may call it (`Access`); see `twisted_vllm.admin.access`.

A noun has one `Routes`, and each handler stands below its declaration::

    routes = Routes()

    @routes.post("/key/block", body=NameRequest, response=KeyReport, errors=(404,))
    async def block(call: AdminCall, body: NameRequest) -> Json:
        '''Block a key, from the next request on.'''

The handler's docstring describes the route in the document. What the handler returns is sent as JSON; bytes are sent as
they are, after the handler has set the status and the headers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from inspect import getdoc
from typing import Any, TypeVar

import attrs
import msgspec
from twisted.web.iweb import IRequest

from twisted_vllm.admin.access import Access as Access
from twisted_vllm.admin.authorization import first_headers
from twisted_vllm.admin.context import AdminCall, AdminContext
from twisted_vllm.admin.models import Body, Json, Query
from twisted_vllm.admin.parsing import parse_body, parse_query, read_object, read_query, without_blanks
from twisted_vllm.admin.responses import send_json
from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.http.headers import is_json

#: a parameter in a path as Klein writes it, such as ``<string:key>``
PATH_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")

BodyT = TypeVar("BodyT", bound=Body)
QueryT = TypeVar("QueryT", bound=Query)

GetHandler = Callable[[AdminCall, QueryT], Awaitable[object]]
PostHandler = Callable[[AdminCall, BodyT], Awaitable[object]]
OpenHandler = Callable[[AdminContext, IRequest], Awaitable[object]]

#: handles a request, given the app's context and the parameters in the path
Handle = Callable[[AdminContext, IRequest, Mapping[str, str]], Awaitable[object]]

#: does what a route does, given the caller, the parameters in the path, and the query or the body
Perform = Callable[[AdminContext, IRequest, Principal, Mapping[str, str], Mapping[str, Any]], Awaitable[object]]


@attrs.frozen(kw_only=True)
class Route:
    """A route: what serves it, and what the OpenAPI document says of it.

    Attributes:
        method: the HTTP method.
        path: the path, with parameters as Klein writes them: ``/key/<string:key>/regenerate``.
        handle: handles a request.
        perform: does what the route does for a caller who was authorized, with what the query or the body says; None
            for one that is open to everybody.
        description: what it does.
        access: who may call it.
        response: the type of its JSON; None where it sends none.
        body: the model of its body, if it takes one.
        query: the model of its query, if it takes one.
        errors: the statuses of its errors, besides those that follow from its access and body.
        constraint: what a body must meet besides its model, as JSON Schema.
        may_be_empty: whether a body that has a constraint may be empty.
        unavailable: the model of its 503 response, where that is more than an error.
        media_types: the types in which it responds, besides JSON.
    """

    method: str
    path: str
    handle: Handle
    description: str
    access: Access
    response: Any
    perform: Perform | None = None
    body: type[Body] | None = None
    query: type[Query] | None = None
    errors: tuple[int, ...] = ()
    constraint: Mapping[str, Any] | None = None
    may_be_empty: bool = False
    unavailable: type[msgspec.Struct] | None = None
    media_types: tuple[str, ...] = ()

    @property
    def action(self) -> str:
        """The name of the route in the audit log: its path without parameters."""
        return _action(self.path)

    @property
    def template(self) -> str:
        """The path with parameters as OpenAPI writes them: ``/key/{key}/regenerate``."""
        return PATH_PARAMETER.sub(r"{\1}", self.path)

    async def respond(self, context: AdminContext, request: IRequest, **path: str) -> bytes:
        """Respond to a request; Klein calls it with the context that its routes are bound to."""
        result = await self.handle(context, request, path)
        return result if isinstance(result, bytes) else send_json(request, result)


class Routes:
    """The routes of a noun, in the order of their declarations.

    A handler may have several paths; the first names it in the audit log. The keyword arguments of the decorators are
    attributes of `Route`.
    """

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def get(
        self, *paths: str, query: type[QueryT], access: Access = Access.READER, **options: Any
    ) -> Callable[[GetHandler[QueryT]], GetHandler[QueryT]]:
        """Declare a GET route. It is for administrators and viewers, unless `access` says otherwise."""
        action = _action(paths[0])

        def declare(handler: GetHandler[QueryT]) -> GetHandler[QueryT]:
            async def handle(context: AdminContext, request: IRequest, path: Mapping[str, str]) -> object:
                authenticator = context.authenticator
                await authenticator.find_out(request)
                principal = await authenticator.caller_of(request, access, action)
                return await perform(context, request, principal, path, read_query(request))

            async def perform(
                context: AdminContext,
                request: IRequest,
                principal: Principal,
                path: Mapping[str, str],
                parameters: Mapping[str, Any],
            ) -> object:
                given = {name: text for name, text in parameters.items() if text}
                call = AdminCall(request, context, principal, action, path, given)
                return await handler(call, parse_query(parameters, query))

            self._add("GET", paths, handler, handle, perform=perform, query=query, access=access, **options)
            return handler

        return declare

    def post(
        self, *paths: str, body: type[BodyT], access: Access = Access.ADMINISTRATOR, **options: Any
    ) -> Callable[[PostHandler[BodyT]], PostHandler[BodyT]]:
        """Declare a POST route. It is for administrators, unless `access` says otherwise.

        A path parameter with the name of a field in the body sets it.
        """
        return self._changing("POST", paths, body, access, options)

    def patch(
        self, *paths: str, body: type[BodyT], access: Access = Access.ADMINISTRATOR, **options: Any
    ) -> Callable[[PostHandler[BodyT]], PostHandler[BodyT]]:
        """Declare a PATCH route, as `post`."""
        return self._changing("PATCH", paths, body, access, options)

    def put(
        self, *paths: str, body: type[BodyT], access: Access = Access.ADMINISTRATOR, **options: Any
    ) -> Callable[[PostHandler[BodyT]], PostHandler[BodyT]]:
        """Declare a PUT route, as `post`."""
        return self._changing("PUT", paths, body, access, options)

    def delete(
        self, *paths: str, body: type[BodyT], access: Access = Access.ADMINISTRATOR, **options: Any
    ) -> Callable[[PostHandler[BodyT]], PostHandler[BodyT]]:
        """Declare a DELETE route with a body, as `post`."""
        return self._changing("DELETE", paths, body, access, options)

    def _changing(
        self, method: str, paths: tuple[str, ...], body: type[BodyT], access: Access, options: Mapping[str, Any]
    ) -> Callable[[PostHandler[BodyT]], PostHandler[BodyT]]:
        action = _action(paths[0])

        def declare(handler: PostHandler[BodyT]) -> PostHandler[BodyT]:
            async def handle(context: AdminContext, request: IRequest, path: Mapping[str, str]) -> object:
                authenticator = context.authenticator
                await authenticator.find_out(request)
                # before the body is read: a stranger's is never held
                caller = await authenticator.caller_of(request, access, action)
                if access is Access.SELF_SERVICE:
                    await authenticator.count_change(caller)
                context.web_pages.check_media_type(is_json(first_headers(request, (b"content-type",))))
                found = await read_object(request)
                # the key may have been blocked while the body arrived
                principal = await authenticator.caller_of(request, access, action, again=True)
                return await perform(context, request, principal, path, found)

            async def perform(
                context: AdminContext,
                request: IRequest,
                principal: Principal,
                path: Mapping[str, str],
                parameters: Mapping[str, Any],
            ) -> object:
                given = without_blanks(body.flat(_with_path(dict(parameters), path, body)))
                call = AdminCall(request, context, principal, action, path, given)
                return await handler(call, parse_body(given, body))

            self._add(method, paths, handler, handle, perform=perform, body=body, access=access, **options)
            return handler

        return declare

    def open(self, *paths: str, **options: Any) -> Callable[[OpenHandler], OpenHandler]:
        """Declare a GET route that needs no credential and ignores its query."""

        def declare(handler: OpenHandler) -> OpenHandler:
            async def handle(context: AdminContext, request: IRequest, _path: Mapping[str, str]) -> object:
                return await handler(context, request)

            self._add("GET", paths, handler, handle, access=Access.OPEN, **options)
            return handler

        return declare

    def _add(
        self, method: str, paths: tuple[str, ...], handler: Callable[..., object], handle: Handle, **options: Any
    ) -> None:
        description = getdoc(handler) or ""
        self._routes += [
            Route(method=method, path=path, handle=handle, description=description, **options) for path in paths
        ]


def _action(path: str) -> str:
    """Return the name of a route in the audit log: its path without parameters."""
    return "/".join(part for part in path.split("/") if part and not part.startswith("<"))


def _with_path(given: Json, path: Mapping[str, str], body: type[Body]) -> Json:
    """Return the fields of a body, with those that the path gives.

    Raises:
        InvalidRequest: the body gives another value.
    """
    for name, value in path.items():
        if name in body.__struct_fields__:
            if given.get(name) not in (None, value):
                raise InvalidRequest(f"The path names another {name} than the body: name it once.", param=name)
            given[name] = value
    return given
