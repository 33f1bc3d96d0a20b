"""Compares the settings in effect with those that were read again: what changes, and what needs a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs
import msgspec

from twisted_vllm.config.declaration import Section, settings_of
from twisted_vllm.config.listen import is_loopback, same_place
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.settings import Limits, ModelEntry, Server, Settings, Timeouts

A = TypeVar("A", bound=attrs.AttrsInstance)

LISTEN = "passthrough.listen"

#: the attributes of a server that it takes from the settings of all servers, unless it has its own
_SHARED = ("timeouts", *(each.attribute for each in settings_of(Limits) if each.per_server))


@attrs.frozen
class ReloadPlan:
    """What a reload does.

    Attributes:
        settings: those that are in effect afterwards: what needs a restart is as before.
        changed: the paths of the settings that change.
        restart_needed: the paths of the settings that differ and do not change.
    """

    settings: Settings
    changed: tuple[str, ...] = ()
    restart_needed: tuple[str, ...] = ()


@attrs.frozen
class Reloaded:
    """What a reload did.

    Attributes:
        changed: the paths of the settings that changed.
        restart_needed: the paths of the settings that differ and need a restart.
        warnings: what is accepted and not used.
    """

    changed: tuple[str, ...] = ()
    restart_needed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


#: the results of a reload, as metrics name them
SUCCEEDED, INVALID, FAILED = "succeeded", "invalid", "failed"

#: lines of each kind that are kept of the last reload
MOST_LINES = 100


class ReloadEnd(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """When and how a reload ended.

    Attributes:
        at: Unix seconds.
        by: who asked for it: ``API`` or the name of a signal.
        result: whether it `SUCCEEDED`, was `INVALID` and changed nothing, or `FAILED` otherwise.
        changed: as in `Reloaded`.
        restart_needed: likewise.
        warnings: likewise.
        problems: why nothing was changed.
    """

    at: float
    by: str
    result: str
    changed: tuple[str, ...] = ()
    restart_needed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class ReloadState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What reloads did since the start.

    Attributes:
        read_at: when the settings in effect were read, in Unix seconds.
        restart_needed: settings that differ from what was read last, and need a restart.
        last: the last reload; None if there was none.
    """

    read_at: float
    restart_needed: tuple[str, ...] = ()
    last: ReloadEnd | None = None

    def after(self, end: ReloadEnd) -> ReloadState:
        """Return the state after a reload, of which no more than `MOST_LINES` lines of a kind are kept."""
        kept = msgspec.structs.replace(
            end,
            changed=most_lines(end.changed),
            restart_needed=most_lines(end.restart_needed),
            warnings=most_lines(end.warnings),
            problems=most_lines(end.problems),
        )
        if end.result == SUCCEEDED:
            return ReloadState(read_at=end.at, restart_needed=kept.restart_needed, last=kept)
        return msgspec.structs.replace(self, last=kept)


def most_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the first lines, and how many more there are."""
    more = len(lines) - MOST_LINES
    return (*lines[:MOST_LINES], f"and {more} more") if more > 0 else tuple(lines)


def plan_reload(current: Settings, wanted: Settings) -> ReloadPlan:
    """Compare settings.

    Args:
        current: those in effect.
        wanted: those that were read.

    Raises:
        ConfigError: those that may change do not go with those that stay.
    """
    changed: list[str] = []
    restart_needed: list[str] = []
    routing = _merged(current.routing, wanted.routing, "", changed, restart_needed)
    settings = attrs.evolve(_merged(current, wanted, "", changed, restart_needed), routing=routing)
    if LISTEN in restart_needed and _same_places(current.listen, wanted.listen):
        # only files of certificates have other names
        restart_needed.remove(LISTEN)
        changed.append(LISTEN)
        settings = attrs.evolve(settings, listen=wanted.listen)
    settings = attrs.evolve(settings, origins=wanted.origins.with_former(current.origins, restart_needed))
    changed += _changed_servers(current, wanted)
    _refuse_open_mode(settings)
    return ReloadPlan(settings, tuple(changed), tuple(restart_needed))


def _merged(current: A, wanted: A, path: str, changed: list[str], restart_needed: list[str]) -> A:
    """Return the wanted values, save those that need a restart."""
    kept: dict[str, Any] = {}
    for each in settings_of(type(wanted)):
        here = f"{path}.{each.name}" if path else each.path
        before, after = getattr(current, each.attribute), getattr(wanted, each.attribute)
        if isinstance(each.check, Section):
            kept[each.attribute] = _merged(before, after, here, changed, restart_needed)
        elif before != after:
            if each.reload:
                changed.append(here)
            else:
                restart_needed.append(here)
                kept[each.attribute] = before
    merged: A = attrs.evolve(wanted, **kept)  # type: ignore[misc]  # mypy does not see the bound of A
    return merged


def _same_places(current: Sequence[str], wanted: Sequence[str]) -> bool:
    return len(current) == len(wanted) and all(map(same_place, current, wanted))


def _refuse_open_mode(settings: Settings) -> None:
    """Refuse to open a gateway that still listens where other machines reach it."""
    if settings.master_key is None and not settings.allow_anonymous and not all(map(is_loopback, settings.listen)):
        raise ConfigError(
            [
                Problem(
                    "general_settings.master_key",
                    "is missing while the gateway still listens for other machines, so that anybody could use the "
                    "servers (set it, or restart the gateway with the new passthrough.listen)",
                )
            ]
        )


def _changed_servers(current: Settings, wanted: Settings) -> list[str]:
    """Return a path for the default server, and for each model that is new, gone, or served in another way."""
    changed = []
    if _seen(current.default_server, current) != _seen(wanted.default_server, wanted):
        changed.append("passthrough.api_base")
    before, after = _entries(current), _entries(wanted)
    if before.keys() == after.keys() and list(before) != list(after):
        # the first entry serves what names no model
        changed.append("model_list")
    names = dict.fromkeys((*before, *after))
    changed += [f"model_list.{name}" for name in names if before.get(name) != after.get(name)]
    return changed


def _entries(settings: Settings) -> Mapping[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in settings.models:
        found.setdefault(entry.model_name, []).append(_entry_seen(entry, settings))
    return found


def _entry_seen(entry: ModelEntry, settings: Settings) -> Mapping[str, Any]:
    return {**attrs.asdict(entry, recurse=False), "server": _seen(entry.server, settings)}


def _seen(server: Server | None, settings: Settings) -> Mapping[str, Any] | None:
    """Return what is a server's own: not what it shares with all servers, which has paths of its own."""
    if server is None:
        return None
    own = {name: value for name, value in attrs.asdict(server, recurse=False).items() if name not in _SHARED}
    for each in attrs.fields(Timeouts):
        if (value := getattr(server.timeouts, each.name)) != getattr(settings.timeouts, each.name):
            own[f"timeouts.{each.name}"] = value
    for name in _SHARED[1:]:
        if (value := getattr(server, name)) != getattr(settings.limits, name):
            own[name] = value
    return own
