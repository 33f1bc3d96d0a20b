"""The document of the admin API, OpenAPI 3.1, from its routes and from the schemas that check what comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from inspect import cleandoc, getdoc
from typing import Any

import msgspec
from twisted.web.iweb import IRequest

from twisted_vllm.admin.answers import Error
from twisted_vllm.admin.openapi_operations import OPERATIONS
from twisted_vllm.admin.operation import Operation
from twisted_vllm.admin.queries import Query
from twisted_vllm.admin.respond import send_json
from twisted_vllm.admin.schemas import PRINTABLE
from twisted_vllm.auth.credentials import KEY_HEADERS
from twisted_vllm.errors import ERROR_HEADER

Json = dict[str, Any]
Route = tuple[str, Callable[..., Any]]

_REF = "#/components/schemas/{name}"

#: what Klein writes into a path for a part of it, as in ``<string:key>``
_PATH_PART = re.compile(r"<(?:\w+:)?(\w+)>")

#: how the docstring of an endpoint begins
_ANSWERS = re.compile(r"Answer (?:``[^`]+``(?: and )?)+: ")

_CODE = re.compile(r"``([^`]*)``")

#: what each refusal means, by its status
_REFUSALS = {
    400: "Something in the request cannot be done; `param` names it.",
    401: "No credential came, or it is not known, has expired or was blocked.",
    403: "The credential may not do this.",
    404: "What is named is not known.",
    409: "What was to be made exists already.",
    413: "The body is too large.",
    429: "Too many credentials that are not valid came from this address.",
    503: "The database does not answer.",
}

_EVERYWHERE = (400,)
_WITH_KEY = (401, 403, 429, 503)
_WITH_BODY = (413,)

#: a part of a path that names something
_PART = {"type": "string", "minLength": 1, "pattern": PRINTABLE}

_HEADER = {"schema": {"type": "string"}}


#: what the API is for
ABOUT = (
    "The admin API of a gateway for shared vLLM servers: virtual keys, users, teams, end users, usage and its cost, "
    "the audit and health, in LiteLLM's shapes. vLLM's own API is below /vllm, and described at /vllm/openapi.json."
)


class OpenApiEndpoint:
    """Shows the document. It is open to everyone: it says what README says, and holds no secret.

    Args:
        routes: the method and the endpoint of each path, as Klein takes them.
    """

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self._document: Json | None = None

    def openapi(self, request: IRequest) -> bytes:
        """Answer ``GET /openapi.json``: this document."""
        if self._document is None:
            self._document = document(self._routes, OPERATIONS)
        return send_json(request, self._document)


def document(routes: Mapping[str, Route], operations: Mapping[str, Operation]) -> Json:
    """Return the document.

    Args:
        routes: the method and the endpoint of each path, as Klein takes them.
        operations: what the document says of each; a path without one is an error.

    Raises:
        KeyError: a route is not described.
    """
    described = {path: operations[path] for path in routes}
    types = [each for operation in described.values() for each in _types(operation)]
    schemas, components = msgspec.json.schema_components([*types, Error], ref_template=_REF)
    for operation in described.values():
        if operation.body is not None:
            # what is not known is refused
            components[operation.body.__name__]["additionalProperties"] = False
    found = iter(schemas)
    paths: dict[str, Json] = {}
    for path, (method, endpoint) in routes.items():
        operation = described[path]
        made = {
            "operationId": _identity(path),
            "tags": [path.split("/")[1] or "about"],
            **_words(endpoint),
            **_operation(path, operation, found),
        }
        paths.setdefault(_PATH_PART.sub(r"{\1}", path), {})[method.lower()] = made
    for schema in components.values():
        schema["description"] = _markdown(schema.get("description", ""))
    licence = {"name": "MIT", "identifier": "MIT"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "twisted_vllm", "description": ABOUT, "version": version("twisted-vllm"), "license": licence},
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _security()],
        "paths": paths,
        "components": {"schemas": components, "responses": _refusals(), "securitySchemes": _security()},
    }


def _types(operation: Operation) -> Iterator[Any]:
    """Return what of an operation has a schema; `_operation` takes the schemas in this order."""
    yield operation.answer
    yield operation.query
    if operation.body is not None:
        yield operation.body
    if operation.failure is not None:
        yield operation.failure


def _operation(path: str, operation: Operation, schemas: Iterator[Json]) -> Json:
    answer = next(schemas)
    next(schemas)
    refusals: Iterable[int] = _EVERYWHERE + operation.refusals
    found: Json = {}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PART} for name in _PATH_PART.findall(path)
    ] + list(_parameters(operation.query))
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        schema = next(schemas)
        needed = any(field.required for field in msgspec.structs.fields(operation.body))
        if operation.narrows is not None:
            schema = {"allOf": [schema, operation.narrows]}
            needed = needed or not operation.may_be_empty
        found["requestBody"] = {"required": needed, "content": {"application/json": {"schema": schema}}}
        refusals = (*refusals, *_WITH_BODY)
    if operation.is_open:
        found["security"] = []
    else:
        refusals = (*refusals, *_WITH_KEY)
    content: Json = {name: {} for name in operation.other_types}
    if operation.answer is not None:
        content["application/json"] = {"schema": answer}
    responses: Json = {"200": {"description": "Done.", "content": content}}
    for status in sorted(refusals):
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    if operation.failure is not None:
        responses["503"] = {
            "description": "The gateway should get no requests.",
            "content": {"application/json": {"schema": next(schemas)}},
        }
    found["responses"] = responses
    return found


def _parameters(query: type[Query]) -> Iterator[Json]:
    _, components = msgspec.json.schema_components([query])
    schema = components[query.__name__]
    for name, each in schema["properties"].items():
        if each.get("default") == "":
            del each["default"]
        found = {"name": name, "in": "query", "required": name in schema.get("required", ())}
        if "description" in each:
            found["description"] = each.pop("description")
        if not found["required"] and (each.get("type") == "integer" or "" not in each.get("enum", ("",))):
            # an empty one is as good as none
            each = {"anyOf": [each, {"const": ""}]}
        yield {**found, "schema": each}


def _words(endpoint: Callable[..., Any]) -> Json:
    """Return what the docstring of an endpoint says, as Markdown."""
    text = _markdown(_ANSWERS.sub("", cleandoc(getdoc(endpoint) or "")))
    text = text[:1].upper() + text[1:]
    return {"summary": text.partition("\n")[0].rstrip("."), "description": text}


def _markdown(text: str) -> str:
    return _CODE.sub(r"`\1`", text)


def _identity(path: str) -> str:
    words: list[str] = re.findall(r"\w+", _PATH_PART.sub(r"of_\1", path))
    return "_".join(words) or "welcome"


def _refusals() -> Json:
    found: Json = {}
    for status, words in _REFUSALS.items():
        headers: Json = {ERROR_HEADER.decode(): {"description": "The code of the error.", "required": True, **_HEADER}}
        if status == 401:
            headers["www-authenticate"] = _HEADER
        if status in (429, 503):
            headers["retry-after"] = {"description": "Seconds.", "schema": {"type": "integer"}}
        found[str(status)] = {
            "description": words,
            "headers": headers,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
        }
    return found


def _security() -> Json:
    return {
        "bearer": {"type": "http", "scheme": "bearer"},
        **{name.decode(): {"type": "apiKey", "in": "header", "name": name.decode()} for name in KEY_HEADERS},
    }
