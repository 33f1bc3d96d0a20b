"""The guards of conftest.py catch what they promise: an inner run has careless and careful tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

CARELESS = """
import pytest_twisted
from twisted.internet.defer import fail
from twisted.internet.protocol import Factory
from twisted.logger import Logger

LOG = Logger()

def test_delayed_call(reactor):
    reactor.callLater(60, print)

def test_listening_port(reactor):
    reactor.listenTCP(0, Factory(), interface="127.0.0.1")

def test_unhandled_deferred():
    fail(ValueError("lost"))

def test_unhandled_deferred_in_a_cycle():
    cycle = [fail(ValueError("lost in a cycle"))]
    cycle.append(cycle)

def test_logged_failure():
    try:
        1 / 0
    except ZeroDivisionError:
        LOG.failure("divided")

def test_critical():
    LOG.critical("the end is near")
"""

CAREFUL = """
import pytest_twisted
from twisted.internet.defer import fail
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger

LOG = Logger()

def test_cancelled_call(reactor):
    reactor.callLater(60, print).cancel()

@pytest_twisted.ensureDeferred
async def test_stopped_port(reactor):
    await reactor.listenTCP(0, Factory(), interface="127.0.0.1").stopListening()

def test_port_that_is_about_to_stop(reactor):
    reactor.listenTCP(0, Factory(), interface="127.0.0.1").stopListening()

def test_expected_failure(logged_failures):
    fail(ValueError("expected"))
    [failure] = logged_failures.flush(ValueError)
    assert failure.getErrorMessage() == "expected"

def test_expected_critical(logged_failures):
    LOG.critical("expected")
    assert logged_failures.flush() == [None]

def test_warnings_and_errors_are_only_lines():
    LOG.warn("warned")
    LOG.error("erred")
"""


@pytest.fixture(scope="module")
def inner_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("inner")
    shutil.copy(CONFTEST, directory / "conftest.py")
    (directory / "test_careless.py").write_text(CARELESS)
    (directory / "test_careful.py").write_text(CAREFUL)
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-rA", "-q"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("careless", "told"),
    [
        ("test_delayed_call", "left on the reactor:"),
        ("test_listening_port", "left on the reactor:"),
        ("test_unhandled_deferred", "ValueError: lost"),
        ("test_unhandled_deferred_in_a_cycle", "ValueError: lost in a cycle"),
        ("test_logged_failure", "ZeroDivisionError"),
        ("test_critical", "the end is near"),
    ],
)
def test_a_careless_test_fails_and_is_told_why(inner_run: str, careless: str, told: str) -> None:
    assert f"ERROR test_careless.py::{careless} - " in inner_run
    section = inner_run.split(f"ERROR at teardown of {careless} ___", 1)[1].split("\n____", 1)[0]
    assert told in section


def test_a_careful_test_passes_beside_careless_ones(inner_run: str) -> None:
    assert "ERROR test_careful.py" not in inner_run
    assert "FAILED" not in inner_run
    assert inner_run.count("PASSED test_careful.py") == 6


def test_one_careless_test_does_not_spoil_the_next(inner_run: str) -> None:
    assert "12 passed, 6 errors" in inner_run
