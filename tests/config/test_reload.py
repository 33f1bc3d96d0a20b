"""The comparison of the settings in effect with those that were read again."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs
import pytest

from tests.config.other_values import other_value
from twisted_vllm.config.declaration import Section, Setting, settings_of
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.reload import ReloadPlan, plan_reload
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import (
    DEFAULT_DATABASE_URL,
    ModelEntry,
    PriceList,
    RoutingSettings,
    Server,
    Settings,
    Timeouts,
)

LOOPBACK = "tcp:4000:interface=127.0.0.1"


def server(name: str = "gpu-1:8000", **changes: Any) -> Server:
    found = Server(name, "127.0.0.1", 9, False, b"", name.encode(), None, Timeouts())
    return attrs.evolve(found, **changes)


SETTINGS = Settings(master_key=Secret("sk-master"), default_server=server(), models=(ModelEntry("m", "m", server()),))


def plan(wanted: Settings, current: Settings = SETTINGS) -> ReloadPlan:
    return plan_reload(current, wanted)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Setting, Any, tuple[str, ...]]]:
    """Yield each setting with its path, its value and the attributes that lead to it."""
    for each in settings_of(type(value)):
        here = f"{path}.{each.name}" if path else each.path
        held = getattr(value, each.attribute)
        if isinstance(each.check, Section):
            for found, inner, content, attributes in leaves(held, here):
                yield found, inner, content, (each.attribute, *attributes)
        else:
            yield here, each, held, (each.attribute,)


def with_other(value: Any, attributes: tuple[str, ...], content: object) -> Any:
    name, *rest = attributes
    inner = with_other(getattr(value, name), tuple(rest), content) if rest else content
    return attrs.evolve(value, **{name: inner})


def resolved(settings: Settings) -> Settings:
    """Return settings whose server has the timeouts and limits of all servers."""
    limits = settings.limits
    own = server(
        timeouts=settings.timeouts,
        max_concurrent_requests=limits.max_concurrent_requests,
        max_queued_requests=limits.max_queued_requests,
    )
    return attrs.evolve(settings, default_server=own, models=(ModelEntry("m", "m", own),))


LEAVES = {path: (each, held, ("routing", *at)) for path, each, held, at in leaves(RoutingSettings())}
LEAVES |= {path: (each, held, at) for path, each, held, at in leaves(SETTINGS)}


@pytest.mark.parametrize("path", LEAVES)
def test_each_setting_changes_or_needs_a_restart(path: str) -> None:
    each, held, attributes = LEAVES[path]
    found = plan(resolved(with_other(SETTINGS, attributes, other_value(each, held))))
    assert (found.changed, found.restart_needed) == ((path,), ()) if each.reload else ((), (path,))
    if not each.reload:
        assert attrs.evolve(found.settings, default_server=server(), models=SETTINGS.models) == SETTINGS


def test_few_settings_need_a_restart() -> None:
    assert {path for path, (each, _, _) in LEAVES.items() if not each.reload} == {
        "general_settings.database_url",
        "passthrough.ledger.enabled",
        "passthrough.ledger.spool_directory",
        "passthrough.limits.max_reports",
        "passthrough.listen",
        "passthrough.redis_url",
        "passthrough.timeouts.redis",
        "passthrough.workers",
    }


def test_equal_settings_change_nothing() -> None:
    assert plan(SETTINGS) == ReloadPlan(SETTINGS)


def test_what_needs_a_restart_stays_and_what_does_not_changes() -> None:
    wanted = attrs.evolve(SETTINGS, database_url=Secret("sqlite:///other.sqlite3"), drain_delay=3.0)
    found = plan(wanted)
    assert (found.changed, found.restart_needed) == (("passthrough.drain_delay",), ("general_settings.database_url",))
    assert found.settings == attrs.evolve(wanted, database_url=Secret(DEFAULT_DATABASE_URL))
    # and is named until the restart
    assert plan(wanted, found.settings).restart_needed == ("general_settings.database_url",)


@pytest.mark.parametrize(
    ("models", "changed"),
    [
        ((), ("model_list.m",)),
        ((ModelEntry("n", "m", server()),), ("model_list.m", "model_list.n")),
        ((ModelEntry("m", "m", server()), ModelEntry("n", "n", server())), ("model_list.n",)),
        ((ModelEntry("m", "m", server()), ModelEntry("m", "m", server("gpu-2:8000"))), ("model_list.m",)),
        ((ModelEntry("m", "m", server(), weight=2),), ("model_list.m",)),
        ((ModelEntry("m", "m", server(), prices=PriceList(input_cost_per_token=Decimal(1))),), ("model_list.m",)),
        ((ModelEntry("m", "m", server(max_concurrent_requests=3)),), ("model_list.m",)),
        ((ModelEntry("m", "m", server(timeouts=Timeouts(total=3.0))),), ("model_list.m",)),
        ((ModelEntry("m", "m", server(api_key=Secret("key"))),), ("model_list.m",)),
    ],
)
def test_models_are_named_that_come_go_or_are_served_otherwise(
    models: tuple[ModelEntry, ...], changed: tuple[str, ...]
) -> None:
    assert plan(attrs.evolve(SETTINGS, models=models)).changed == changed


def test_a_timeout_of_all_servers_is_no_change_of_each() -> None:
    timeouts = Timeouts(idle=7.0)
    other = server(timeouts=timeouts)
    wanted = attrs.evolve(SETTINGS, timeouts=timeouts, default_server=other, models=(ModelEntry("m", "m", other),))
    assert plan(wanted).changed == ("passthrough.timeouts.idle",)


def test_another_default_server_is_named() -> None:
    assert plan(attrs.evolve(SETTINGS, default_server=None)).changed == ("passthrough.api_base",)


def test_another_order_of_models_is_told() -> None:
    first, second = ModelEntry("m", "m", server()), ModelEntry("n", "n", server())
    current = attrs.evolve(SETTINGS, models=(first, second))
    assert plan(attrs.evolve(SETTINGS, models=(second, first)), current).changed == ("model_list",)


TLS = "ssl:443:privateKey=a.pem:certKey=a.pem:interface=127.0.0.1"


@pytest.mark.parametrize(
    ("wanted", "restarts"),
    [
        (TLS.replace("a.pem", "b.pem"), False),
        ("ssl:443:b.pem:interface=127.0.0.1", False),
        ("ssl:port=443:interface=127.0.0.1:privateKey=b.pem:extraCertChain=chain.pem", False),
        (TLS.replace("443", "444"), True),
        (TLS.replace("127.0.0.1", "127.0.0.2"), True),
        (f"haproxy:{TLS}", True),
        (f"{TLS}:backlog=7", True),
        (LOOPBACK, True),
    ],
)
def test_other_files_of_certificates_need_no_restart(wanted: str, restarts: bool) -> None:
    current = attrs.evolve(SETTINGS, listen=(LOOPBACK, TLS))
    found = plan(attrs.evolve(SETTINGS, listen=(LOOPBACK, wanted)), current)
    assert (
        (found.changed, found.restart_needed) == ((), ("passthrough.listen",))
        if restarts
        else (
            ("passthrough.listen",),
            (),
        )
    )
    assert found.settings.listen == ((LOOPBACK, TLS) if restarts else (LOOPBACK, wanted))


def test_a_gateway_that_others_reach_is_not_opened_before_it_listens_elsewhere() -> None:
    current = attrs.evolve(SETTINGS, listen=("tcp:4000",))
    with pytest.raises(ConfigError, match="is missing while the gateway still listens for other machines"):
        plan(attrs.evolve(SETTINGS, master_key=None, listen=(LOOPBACK,)), current)
    assert plan(attrs.evolve(SETTINGS, master_key=None, listen=(LOOPBACK,), allow_anonymous=True), current)
    assert plan(attrs.evolve(SETTINGS, master_key=None)).changed == ("general_settings.master_key",)
