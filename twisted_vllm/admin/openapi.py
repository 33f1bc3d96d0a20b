"""Makes the OpenAPI 3.1 document of the admin API from the declarations of its routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.fields import PRINTABLE
from twisted_vllm.admin.models import Body, Error, Json, Query
from twisted_vllm.admin.routing import PATH_PARAMETER, Route
from twisted_vllm.errors import ERROR_HEADER
from twisted_vllm.http.headers import KEY_HEADERS

_REF = "#/components/schemas/{name}"

_CODE = re.compile(r"``([^`]*)``")

#: what each error means, by its status
_ERRORS = {
    400: "The request is malformed or asks for something that cannot be done; `param` names the field at fault.",
    401: "The credential is missing, unknown, expired or blocked.",
    403: "The credential does not allow this.",
    404: "There is no such object.",
    409: "The object exists already, or is in a state that does not allow this.",
    413: "The body is too large.",
    415: "The Content-Type is not JSON, and the gateway has no master key.",
    429: "Too many invalid credentials came from this address, or too many reports of this caller wait.",
    503: "The database does not respond, or too many reports wait.",
    504: "The report took too long.",
}

_ALWAYS = (400,)
_WITH_CREDENTIAL = (401, 403, 429, 503)
_WITH_BODY = (413, 415)

_PATH_SCHEMA = {"type": "string", "minLength": 1, "pattern": PRINTABLE}
_HEADER = {"schema": {"type": "string"}}

_ABOUT = (
    "The admin API of a gateway for shared vLLM servers: virtual keys, users, teams, customers, usage and its cost, "
    "the audit log and health, in LiteLLM's shapes. vLLM's own API is below /vllm, and its inference routes "
    "are also at the root (passthrough.root_routes); /vllm/openapi.json describes them."
)


def make_document(routes: Iterable[Route]) -> Json:
    """Return the OpenAPI document of some routes."""
    routes = list(routes)
    models = [model for route in routes for model in _models_of(route)]
    schemas, components = msgspec.json.schema_components([*models, Error], ref_template=_REF)
    for model, schema in zip(models, schemas, strict=False):
        if isinstance(model, type) and issubclass(model, Body):
            # Unknown fields are refused.
            components[schema["$ref"].rpartition("/")[2]]["additionalProperties"] = False
    remaining = iter(schemas)
    paths: dict[str, Json] = {}
    for route in routes:
        name = _operation_id(route.path)
        # a path with several methods
        again = paths.get(route.template)
        operation = {
            "operationId": f"{name}_{route.method.lower()}" if again else name,
            "tags": [route.path.split("/")[1] or "about"],
            **_description(route),
            **_operation(route, remaining),
        }
        paths.setdefault(route.template, {})[route.method.lower()] = operation
    for schema in components.values():
        schema["description"] = _markdown(schema.get("description", ""))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "twisted_vllm",
            "description": _ABOUT,
            "version": version("twisted-vllm"),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _security()],
        "paths": paths,
        "components": {"schemas": components, "responses": _error_responses(), "securitySchemes": _security()},
    }


def _models_of(route: Route) -> Iterator[Any]:
    """Return the models of a route, in the order in which `_operation` takes their schemas."""
    yield route.response
    if route.query is not None:
        yield route.query
    if route.body is not None:
        yield route.body
    if route.unavailable is not None:
        yield route.unavailable


def _operation(route: Route, schemas: Iterator[Json]) -> Json:
    response = next(schemas)
    found: Json = {}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMA}
        for name in PATH_PARAMETER.findall(route.path)
    ]
    if route.query is not None:
        next(schemas)
        parameters += _parameters(route.query)
    if parameters:
        found["parameters"] = parameters
    errors: Iterable[int] = _ALWAYS + route.errors
    if route.body is not None:
        schema = next(schemas)
        required = any(field.required for field in msgspec.structs.fields(route.body))
        if route.constraint is not None:
            schema = {"allOf": [schema, route.constraint]}
            required = required or not route.may_be_empty
        found["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
        errors = (*errors, *_WITH_BODY)
    if route.access is Access.OPEN:
        found["security"] = []
    else:
        errors = (*errors, *_WITH_CREDENTIAL)
    content: Json = {name: {} for name in route.media_types}
    if route.response is not None:
        content["application/json"] = {"schema": response}
    responses: Json = {"200": {"description": "Success.", "content": content}}
    for status in sorted(errors):
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    if route.unavailable is not None:
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
        if not found["required"] and (each.get("type") in ("integer", "number") or "" not in each.get("enum", ("",))):
            # An empty parameter is the same as none.
            each = {"anyOf": [each, {"const": ""}]}
        yield {**found, "schema": each}


def _description(route: Route) -> Json:
    text = _markdown(route.description)
    return {"summary": text.partition("\n")[0].rstrip("."), "description": text}


def _markdown(text: str) -> str:
    return _CODE.sub(r"`\1`", text)


def _operation_id(path: str) -> str:
    words: list[str] = re.findall(r"\w+", PATH_PARAMETER.sub(r"of_\1", path))
    return "_".join(words) or "welcome"


def _error_responses() -> Json:
    found: Json = {}
    for status, words in _ERRORS.items():
        headers: Json = {ERROR_HEADER.decode(): {"description": "The code of the error.", "required": True, **_HEADER}}
        if status == 401:
            headers["www-authenticate"] = _HEADER
        if status in (429, 503):
            headers["retry-after"] = {"description": "In seconds.", "schema": {"type": "integer"}}
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
