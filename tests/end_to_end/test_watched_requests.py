"""Ten people who watch 5,000 requests in flight cost next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

STREAMS, WATCHERS, SECONDS = 5_000, 10, 4.0


@pytest.fixture(scope="module")
def figures() -> Any:
    """What ``benchmarks.streams.watched`` measured."""
    arguments = [sys.executable, "-m", "benchmarks.streams.watched", str(STREAMS), str(WATCHERS), str(SECONDS)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_watcher_is_told_of_all_of_them_every_two_seconds(figures: Any) -> None:
    assert figures["total"] == STREAMS
    assert figures["messages"] >= SECONDS / 2


def test_a_look_takes_some_milliseconds(figures: Any) -> None:
    # 6 ms on an idle machine; other tests may run beside this one
    assert figures["look"] < 0.03


def test_ten_watchers_with_six_questions_take_about_a_hundredth_of_a_core(figures: Any) -> None:
    assert figures["watched"] - figures["alone"] < 0.03
