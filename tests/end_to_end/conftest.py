from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from tests.end_to_end.end_to_end_harness import DATABASE, Gateway, StandIn, server_at
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Server
from twisted_vllm.simulator.service import SimulatorService, simulator_service
from twisted_vllm.simulator.settings import SimulatorSettings
from twisted_vllm.storage.database import Database

MakeGateway = Callable[..., Gateway]
MakeStandIn = Callable[..., StandIn]


@pytest.fixture
def stand_in(reactor: Any) -> Iterator[MakeStandIn]:
    """Makes raw servers; each answers with the bytes that it is given, or as the test writes it."""
    made: list[StandIn] = []

    def make(answer: bytes | None = None) -> StandIn:
        made.append(StandIn(reactor, answer))
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(each.stop())


@pytest.fixture(scope="session")
def migrated_database(reactor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database with this version's schema.

    Each gateway begins with a copy: migrating takes longer than most tests.
    """
    file = tmp_path_factory.mktemp("schema") / "keys.sqlite3"
    database = Database(reactor, Secret(f"sqlite:///{file}"))
    database.open()
    pytest_twisted.blockon(database.stop())
    return file


@pytest.fixture
def gateway_to(reactor: Any, tmp_path: Path, migrated_database: Path) -> Iterator[MakeGateway]:
    """Makes gateways in front of a server: its port, a `Server`, or None."""
    made: list[Gateway] = []

    def make(server: int | Server | None, **settings: Any) -> Gateway:
        directory = tmp_path / f"gateway{len(made)}"
        directory.mkdir()
        found = server_at(server) if isinstance(server, int) else server
        shutil.copy(migrated_database, directory / DATABASE)
        made.append(Gateway(reactor, directory, found, **settings))
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(ensureDeferred(each.clean_up()))


@pytest.fixture
def simulator(reactor: Any) -> Iterator[SimulatorService]:
    """A simulated vLLM, running, without delays."""
    service = simulator_service(reactor, SimulatorSettings(token_interval=0, first_token=0))
    service.startService()
    yield service
    pytest_twisted.blockon(service.stopService())
