"""A gateway that was reloaded is the same as one that was started with the new settings."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import Enum
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from tests.config.other_values import other_value
from twisted_vllm.app.wiring import Wiring
from twisted_vllm.config.declaration import Section, settings_of
from twisted_vllm.config.reload import plan_reload
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import ModelEntry, PriceList, Server, Settings
from twisted_vllm.observability.logging.setup import GatewayLog, TwistdLog

#: what is counted or remembered, and times and descriptors: these differ
COUNTED = re.compile(
    r"\.index\.(changes|epoch)|\.router\.changes|\._redact\._|\._changes_seen|\.reloader\._read\.|\.health\._(count|checked)|"
    r"\.breaker\.since|\._listing\._created|\.deadlines\.now|\.pipelines\._ends|\.reloader\.(succeeded_at|_state\.read_at)|\.sink\._(descriptor|next_check)|"
    r"\._attrs_cached_hash|\._began|\._make\.began|\.passed\.history\.(since|_next)|\.overview\.watch\._since"
)


def changed(value: Any) -> Any:
    """Return settings in which every one differs that a reload changes."""
    others: dict[str, Any] = {}
    for each in settings_of(type(value)):
        held = getattr(value, each.attribute)
        if isinstance(each.check, Section):
            others[each.attribute] = changed(held)
        elif each.reload:
            others[each.attribute] = other_value(each, held)
    return attrs.evolve(value, **others)


def server(name: str, settings: Settings) -> Server:
    return Server(name, "127.0.0.1", 9, False, b"", name.encode(), Secret(f"key-of-{name}"), settings.timeouts)


def before(directory: Path) -> Settings:
    plain = Settings(
        master_key=Secret("sk-master-key-of-before"),
        database_url=Secret(f"sqlite:///{directory}/keys.sqlite3"),
        listen=("tcp:0:interface=127.0.0.1",),
    )
    shared = server("gpu-1:8000", plain)
    return attrs.evolve(
        plain, default_server=shared, models=(ModelEntry("m", "m", shared), ModelEntry("gone", "gone", shared))
    )


def after(settings: Settings) -> Settings:
    found: Settings = changed(settings)
    found = attrs.evolve(found, routing=changed(settings.routing))
    first, second = server("gpu-1:8000", found), server("gpu-2:8000", found)
    return attrs.evolve(
        found,
        default_server=second,
        models=(
            ModelEntry("m", "m2", first, weight=3, prices=PriceList(input_cost_per_token=Decimal("0.5"))),
            ModelEntry("other", "other", second),
        ),
    )


@pytest.fixture
def make(reactor: Any, tmp_path: Path) -> Iterator[Any]:
    logs: list[GatewayLog] = []

    def wire(settings: Settings) -> tuple[Wiring, GatewayLog]:
        with (tmp_path / "stdout").open("w") as stdout:
            log = GatewayLog(settings.log, settings.secrets, stdout, TwistdLog())
        logs.append(log)
        return Wiring(reactor, settings, log, directory=str(tmp_path)), log

    yield wire
    for log in logs:
        log.writer.stop()


def test_every_component_has_the_new_settings(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = before(tmp_path)
    plan = plan_reload(old, after(old))
    assert plan.restart_needed == ()
    reloaded, log = make(old)
    _, apply = reloaded.prepare(plan.settings)
    apply()
    log.writer.flush()
    reloaded.revoker.stop()
    reloaded.reloader.settings = plan.settings
    fresh, _ = make(plan.settings)
    found, wanted = dict(values_in(reloaded)), dict(values_in(fresh))
    assert len(wanted) > 1_000
    assert {path: (found.get(path), value) for path, value in wanted.items() if found.get(path) != value} == {}


def values_in(start: object) -> Iterator[tuple[str, object]]:
    """Yield each plain value that is reachable from an object of the gateway, with the path to it."""
    seen: dict[int, object] = {}
    waiting: deque[tuple[str, Any]] = deque([("wiring", start)])
    while waiting:
        path, value = waiting.popleft()
        if COUNTED.search(path):
            continue
        if value is None or isinstance(value, bool | int | float | str | bytes | Decimal | Enum | Secret):
            yield path, value
        elif isinstance(value, IPv4Network | IPv6Network | re.Pattern):
            yield path, str(value)
        elif isinstance(value, frozenset | set):
            if all(isinstance(each, str | bytes | int) for each in value):
                yield path, sorted(value)
        elif id(value) not in seen or attrs.has(type(value)):
            seen[id(value)] = value
            waiting.extend((f"{path}{name}", each) for name, each in parts_of(value))


def parts_of(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        if all(isinstance(key, str | bytes) for key in value):
            return [(f"[{key!r}]", value[key]) for key in sorted(value, key=repr)]
        return [(f"[{index}]", each) for index, pair in enumerate(value.items()) for each in pair]
    if isinstance(value, list | tuple | deque):
        return [(f"[{index}]", each) for index, each in enumerate(value)]
    if isinstance(value, partial):
        return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, MethodType):
        return [(".self", value.__self__)]
    if isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        return [(f".{name}", cell.cell_contents) for name, cell in zip(value.__code__.co_freevars, cells, strict=True)]
    if not type(value).__module__.startswith("twisted_vllm.") or isinstance(value, type | Clock):
        return []
    names = {*getattr(value, "__dict__", ()), *(name for kind in type(value).__mro__ for name in slots_of(kind))}
    return [(f".{name}", getattr(value, name)) for name in sorted(names) if hasattr(value, name)]


def slots_of(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
