"""``docs/admin-api.md``: every route of the admin API, from its OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from docs.site.reference.markdown_table import WRITTEN, cell, code, table
from twisted_vllm.admin.access import Access
from twisted_vllm.admin.app import ROUTES
from twisted_vllm.admin.openapi import make_document

_HEAD = f"""\
# Admin API

{WRITTEN.format(source="the routes in twisted_vllm/admin")}

Every route of the gateway's own. A running gateway says the same, with the answers, as an OpenAPI 3.1 document at `/openapi.json`.
[Keys, users and teams](keys.md) shows how to use it. vLLM's routes are in [vLLM's routes](routes.md).

A body is JSON. A field that is not listed is refused by name. Errors are in [Errors](errors.md).
The routes below `/end_user` are those below `/customer`, and are left out here.

| who may call it | |
| --- | --- |
"""

_WHO = {
    Access.OPEN: ("everybody", "no key is needed"),
    Access.ANY_KEY: ("every key", "it sees what is its own; administrators and viewers see everything"),
    Access.READER: ("readers", "administrators and viewers"),
    Access.NAMED: (
        "readers, and keys that name the route",
        "as readers, and keys whose `allowed_routes` name the route",
    ),
    Access.SELF_SERVICE: (
        "self-service",
        "administrators change everything, users and administrators of teams [what is theirs](keys.md#people-serve-themselves)",
    ),
    Access.ADMINISTRATOR: (
        "administrators",
        "the master key, users with the role `proxy_admin`, and keys with `management`",
    ),
    Access.MASTER: ("the master key", "and users with the role `proxy_admin`"),
}

_TITLES = {"": "About the gateway"}


def _type(schema: Mapping[str, Any]) -> str:
    """Return the type of a value in words."""
    if "$ref" in schema:
        return "object"
    if "anyOf" in schema or "oneOf" in schema:
        found = [_type(each) for each in schema.get("anyOf", schema.get("oneOf", [])) if each != {"const": ""}]
        return " or ".join(dict.fromkeys(filter(None, found)))
    if "enum" in schema:
        return ", ".join(code(str(each)) for each in schema["enum"] if each is not None)
    if "const" in schema:
        return code(str(schema["const"]))
    kind = schema.get("type", "")
    if isinstance(kind, list):
        kind = " or ".join(kind)
    if kind == "array":
        inner = _type(schema.get("items", {}))
        return f"array of {inner}" if inner else "array"
    return str(kind) or "any"


def _bounds(schema: Mapping[str, Any]) -> str:
    """Return default and bounds of a value in words."""
    schemas = [schema, *schema.get("anyOf", [])]
    found = []
    for each in schemas:
        if each.get("default") not in (None, "", [], {}):
            default = each["default"]
            found.append(f"default {code(str(default).lower() if isinstance(default, bool) else str(default))}")
        least, most = each.get("minimum"), each.get("maximum")
        if most is not None and abs(most) < 10**9:
            found.append(f"{least or 0} to {most}")
        if each.get("maxLength"):
            found.append(f"at most {each['maxLength']} characters")
        if each.get("maxItems"):
            found.append(f"at most {each['maxItems']}")
    return "; ".join(dict.fromkeys(found))


def _row(name: str, schema: Mapping[str, Any], description: str, required: bool) -> dict[str, str]:
    return {
        "field": code(name),
        "type": _type(schema).replace("|", "\\|"),
        "required": "yes" if required else "",
        "bounds": cell(_bounds(schema)),
        "meaning": cell(description or schema.get("description", "")),
    }


def _properties(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield a row for each field of a body."""
    for each in schema.get("allOf", [schema]):
        found = schemas[each["$ref"].rpartition("/")[2]] if "$ref" in each else each
        if "title" not in found and "$ref" not in each:
            # a constraint on the body, which the descriptions of its fields tell
            continue
        for name, value in found.get("properties", {}).items():
            yield _row(name, value, "", name in found.get("required", ()))


def page() -> str:
    """Return the page."""
    document = make_document(ROUTES)
    schemas = document["components"]["schemas"]
    access = {(route.template, route.method.lower()): route.access for route in ROUTES}
    parts = [_HEAD.rstrip(), *(f"| {name} | {text} |" for name, text in _WHO.values()), ""]
    by_tag: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        if path.startswith("/end_user/"):
            continue
        for method, operation in item.items():
            lines = by_tag.setdefault(operation["tags"][0] if operation.get("tags") else "", [])
            who = _WHO[access[path, method]][0]
            lines.append(f"### {code(f'{method.upper()} {path}')}\n")
            lines.append(f"{cell(operation['description'])}\n\nWho: {who}.\n")
            rows = [
                _row(each["name"], each["schema"], each.get("description", ""), each.get("required", False))
                for each in operation.get("parameters", ())
            ]
            for content in operation.get("requestBody", {}).get("content", {}).values():
                rows += _properties(content["schema"], schemas)
            if rows:
                lines.append(table(rows))
    for tag, lines in by_tag.items():
        title = re.sub(r"^.", lambda first: first[0].upper(), tag.replace("_", " "))
        parts += [f"## {_TITLES.get(tag, title)}\n", *lines]
    return "\n".join(parts).rstrip() + "\n"
