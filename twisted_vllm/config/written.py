"""Finds where the settings that were loaded are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from twisted_vllm.config.origins import FileLines, Kind, Origin, Origins
from twisted_vllm.config.problems import REFERENCE, Place
from twisted_vllm.config.sources import BLOCK

#: lists whose items have places of their own, and of how many these are kept
_LISTS = ("passthrough.sinks", "passthrough.tracing.destinations")
_MOST_ITEMS = 1_000

#: settings that are taken from variables of other programs where the file says nothing, and how these begin
_FOREIGN = {
    "passthrough.tracing": ("OTEL_",),
    "passthrough.otlp_metrics": ("OTEL_",),
    "passthrough.alerts": ("SLACK_WEBHOOK_URL", "ALERTING_WEBHOOK_URL", "WEBHOOK_URL"),
}


def origins_of(
    written: Mapping[Any, Any],
    lines: FileLines,
    environ: Mapping[str, str],
    variables: Mapping[str, str],
    models: Iterable[tuple[Place, str]],
) -> Origins:
    """Return the places of settings.

    Args:
        written: the file, as it was read.
        lines: the lines of its names.
        environ: the environment, with the file's variables.
        variables: the variables that set something, by the paths of the settings.
        models: the places of the entries of ``model_list`` in it, and their ids.
    """
    by_file = {
        name.removeprefix(f"{BLOCK}."): origin for name, origin in lines.names.items() if name.startswith(f"{BLOCK}.")
    }

    def by_variable(name: str) -> Origin:
        origin = by_file.get(name)
        return Origin(Kind.ENVIRONMENT, name=name) if origin is None else attrs.evolve(origin, name=name)

    settings: dict[str, Origin] = {}
    for block, beginnings in _FOREIGN.items():
        found = sorted(name for name in environ if name.startswith(beginnings))
        if found:
            settings[f"{block}.*"] = Origin(Kind.ENVIRONMENT, name=", ".join(found[:10]))
    for path, origin in lines.names.items():
        if path.startswith(f"{BLOCK}."):
            continue
        value = _value_at(written, path)
        if isinstance(value, str) and value.startswith(REFERENCE):
            settings[path] = attrs.evolve(origin, kind=Kind.ENVIRONMENT, name=value.removeprefix(REFERENCE))
        else:
            settings[path] = origin
    for path in _LISTS:
        for index, origin in enumerate(lines.items.get(path, ())[:_MOST_ITEMS]):
            settings[f"{path}[{index}]"] = origin
    settings.update((path, by_variable(name)) for path, name in variables.items())
    entries = lines.items.get("model_list", ())
    of_models = {}
    for place, identity in models:
        number = place.path.removeprefix("model_list[").removesuffix("]")
        if number.isdecimal() and int(number) < len(entries):
            of_models[identity] = entries[int(number)]
    return Origins(settings, of_models, by_file)


def _value_at(written: Mapping[Any, Any], path: str) -> object:
    """Return what stands at a path; None where a name with a dot leads elsewhere."""
    found: object = written
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
