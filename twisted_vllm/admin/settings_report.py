"""The settings in effect, and where each was written, for administrators and viewers. No secret is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast

import msgspec

from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import MAX_PAGE_SIZE, Json, NumberedPage, PageNumber, PageSize, Query, Response
from twisted_vllm.admin.routing import Routes
from twisted_vllm.config.describe import left_out, url_of
from twisted_vllm.config.in_force import InForce, entry_in_force, origin_of_entry, settings_in_force
from twisted_vllm.config.origins import Origin
from twisted_vllm.config.reload import ReloadState, most_lines
from twisted_vllm.config.settings import ModelEntry, Settings
from twisted_vllm.context import RequestContext

#: the longest text that is looked for
_LONGEST_SEARCH = 200


class ConfigQuery(Query, frozen=True, kw_only=True):
    """Which settings to show."""

    search: Annotated[
        str,
        msgspec.Meta(
            max_length=_LONGEST_SEARCH,
            description="A part of the setting's path, its value, its place or its description, in any case.",
        ),
    ] = ""
    changed: Annotated[
        Literal["", "true", "false"], msgspec.Meta(description="true: only settings that differ from their defaults.")
    ] = ""


class ConfigModelsQuery(Query, frozen=True, kw_only=True):
    """Which entries of the model list to show."""

    search: Annotated[
        str,
        msgspec.Meta(
            max_length=_LONGEST_SEARCH, description="A part of the names, the server or the place, in any case."
        ),
    ] = ""
    page: PageNumber = 1
    page_size: PageSize = MAX_PAGE_SIZE


class SettingSource(Response, kw_only=True):
    """Where a value was written."""

    kind: Literal["default", "file", "environment", "command line", "database", "quickstart"]
    file: Annotated[str | None, msgspec.Meta(description="The file, as it was named.")]
    line: Annotated[int | None, msgspec.Meta(description="The line in it.")]
    name: Annotated[str | None, msgspec.Meta(description="The variable that holds the value, or the option.")]


class SettingReport(Response, kw_only=True):
    """A setting in effect."""

    path: Annotated[str, msgspec.Meta(description="Its path in the file.")]
    value: Annotated[Any, msgspec.Meta(description="Its value; *** stands for a secret.")]
    default: Annotated[Any, msgspec.Meta(description="Its default.")]
    changed: Annotated[bool, msgspec.Meta(description="Whether the value differs from the default.")]
    hidden: Annotated[bool, msgspec.Meta(description="Whether something of the value is not shown.")]
    source: SettingSource
    restart: Annotated[bool, msgspec.Meta(description="Whether a new value needs a restart.")]
    pending: Annotated[bool, msgspec.Meta(description="Whether another value was read, which needs a restart.")]
    type: Annotated[str, msgspec.Meta(description="The kind of its value.")]
    unit: str
    null: Annotated[str, msgspec.Meta(description="What null means; empty if it may not be null.")]
    description: str
    environment: Annotated[tuple[str, ...], msgspec.Meta(description="The variables that may set it.")]


class ReloadReported(Response, kw_only=True):
    """How a reload ended."""

    at: datetime
    by: Annotated[str, msgspec.Meta(description="Who asked for it: API, or the name of a signal.")]
    result: Annotated[
        Literal["succeeded", "invalid", "failed"],
        msgspec.Meta(description="invalid: the configuration cannot be used, and nothing was changed."),
    ]
    changed: Annotated[tuple[str, ...], msgspec.Meta(description="The settings that changed.")]
    restart_needed: Annotated[tuple[str, ...], msgspec.Meta(description="Those that differ and need a restart.")]
    warnings: tuple[str, ...]
    problems: Annotated[tuple[str, ...], msgspec.Meta(description="Why nothing was changed.")]


class ConfigReport(Response, kw_only=True):
    """The settings in effect."""

    read_at: Annotated[datetime, msgspec.Meta(description="When they were read.")]
    settings: list[SettingReport]
    total: Annotated[int, msgspec.Meta(description="All settings, whatever was searched for.")]
    models: Annotated[int, msgspec.Meta(description="Entries of the model list; GET /config/models shows them.")]
    skipped: Annotated[list[str], msgspec.Meta(description="Entries that are not for a vLLM server.")]
    ignored: Annotated[list[str], msgspec.Meta(description="Settings that are accepted and not used.")]
    warnings: list[str]
    restart_needed: Annotated[
        list[str], msgspec.Meta(description="Settings that differ from what was read last, and need a restart.")
    ]
    last_reload: Annotated[
        ReloadReported | None, msgspec.Meta(description="The last reload of all processes; null if there was none.")
    ]


class ModelSetting(Response, kw_only=True):
    """An entry of the model list in effect."""

    model_name: str
    model_id: str
    model: Annotated[str, msgspec.Meta(description="The name that the server uses.")]
    values: Annotated[Json, msgspec.Meta(description="What it says, and how its server differs from others.")]
    source: SettingSource


class ConfigModels(NumberedPage, kw_only=True):
    """A page of entries of the model list."""

    data: list[ModelSetting]


routes = Routes()


@routes.get("/config", query=ConfigQuery, response=ConfigReport)
async def report(call: AdminCall, query: ConfigQuery) -> Json:
    """Return every setting in effect with its value, its default and where it was written, and the last reload.

    Secrets are shown as ***, and of URLs neither users nor passwords nor queries. It speaks for all processes of the
    gateway, which have the same settings.
    """
    context = call.context
    state = await context.reload_state()
    settings = context.settings_in_effect()
    clean = _cleaner(call)
    # 2 ms for all settings
    found = list(settings_in_force(settings))
    pending = frozenset(state.restart_needed)
    reports = (_setting(each, pending, clean) for each in found if query.changed != "true" or each.differs)
    wanted = query.search.strip().lower()
    return {
        "read_at": datetime.fromtimestamp(state.read_at, UTC),
        "settings": [each for each in reports if not wanted or wanted in _searched(each)],
        "total": len(found),
        "models": len(settings.models),
        **{name: clean(most_lines(lines)) for name, lines in left_out(settings.warnings).items()},
        "restart_needed": state.restart_needed,
        "last_reload": _last(state, clean),
    }


@routes.get("/config/models", query=ConfigModelsQuery, response=ConfigModels)
async def report_models(call: AdminCall, query: ConfigModelsQuery) -> Json:
    """Return a page of the model list in effect: entries of the file and of the database, and where each was written.

    An entry whose servers DNS finds stands here once for each of them.
    """
    settings = call.context.settings_in_effect()
    wanted = query.search.strip().lower()
    entries: Sequence[ModelEntry] = settings.models
    if wanted:
        entries = [each for each in entries if wanted in _searched_model(settings, each)]
    first = (query.page - 1) * query.page_size
    clean = _cleaner(call)
    return {
        "data": [_model(settings, each, clean) for each in entries[first : first + query.page_size]],
        "total": len(entries),
        "page": query.page,
        "page_size": query.page_size,
        "total_pages": -(-len(entries) // query.page_size),
    }


def _cleaner(call: AdminCall) -> Callable[[Any], Any]:
    """Return what removes secrets from values: those that are known, and what has the form of one."""
    context: RequestContext = cast(Any, call.request).context
    whole = call.context.text.whole

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return whole(context, value)
        if isinstance(value, dict):
            return {clean(name): clean(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [clean(each) for each in value]
        return value

    return clean


def _setting(each: InForce, pending: frozenset[str], clean: Callable[[Any], Any]) -> Json:
    declared = each.declared
    value = clean(each.value)
    return {
        "path": each.path,
        "value": value,
        "default": each.default,
        "changed": each.differs,
        "hidden": each.hidden or value != each.value,
        "source": _source(each.origin),
        "restart": not declared.reload,
        "pending": each.path in pending,
        "type": declared.kind,
        "unit": declared.measure,
        "null": declared.null,
        "description": declared.doc,
        "environment": declared.environment,
    }


def _source(origin: Origin) -> Json:
    return {
        "kind": origin.kind.value,
        "file": origin.file or None,
        "line": origin.line or None,
        "name": origin.name or None,
    }


def _searched(reported: Json) -> str:
    source = reported["source"]
    value = msgspec.json.encode(reported["value"]).decode()
    words = (reported["path"], value, reported["description"], *reported["environment"], *_words_of(source))
    return "\n".join(words).lower()


def _words_of(source: Json) -> Iterator[str]:
    place = f"{source['file']}:{source['line']}" if source["line"] else source["file"]
    yield from (each for each in (source["kind"], place, source["name"]) if each)


def _searched_model(settings: Settings, entry: ModelEntry) -> str:
    found = origin_of_entry(settings, entry)
    words = (entry.model_name, entry.upstream_model, entry.model_id, url_of(entry.server), *_words_of(_source(found)))
    return "\n".join(words).lower()


def _model(settings: Settings, entry: ModelEntry, clean: Callable[[Any], Any]) -> Json:
    return {
        "model_name": clean(entry.model_name),
        "model_id": entry.model_id,
        "model": clean(entry.upstream_model),
        "values": clean(entry_in_force(settings, entry)),
        "source": _source(origin_of_entry(settings, entry)),
    }


def _last(state: ReloadState, clean: Callable[[Any], Any]) -> Json | None:
    last = state.last
    if last is None:
        return None
    lines = {name: clean(getattr(last, name)) for name in ("changed", "restart_needed", "warnings", "problems")}
    return {"at": datetime.fromtimestamp(last.at, UTC), "by": last.by, "result": last.result, **lines}
