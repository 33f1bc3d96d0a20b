"""The fixtures of the simulator's tests."""

from __future__ import annotations

import pytest

from tests.simulator.simulator_harness import Simulator


@pytest.fixture
def simulator() -> Simulator:
    return Simulator()
