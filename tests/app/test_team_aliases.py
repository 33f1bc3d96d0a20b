"""The names of teams for metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

from twisted_vllm.app.telemetry import team_aliases
from twisted_vllm.app.telemetry.team_aliases import REFRESH, TeamAliases
from twisted_vllm.errors import StoreUnavailable


class Questions:
    """A database whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Any]] = []
        self.is_away = False

    def run(self, work: Callable[..., Any], *, writes: bool) -> Deferred[Any]:
        assert not writes
        if self.is_away:
            return fail(StoreUnavailable("away"))
        self.asked.append(Deferred())
        return self.asked[-1]


@pytest.fixture
def questions() -> Questions:
    return Questions()


@pytest.fixture
def clock() -> list[float]:
    return [1_000.0]


@pytest.fixture
def aliases(questions: Any, clock: list[float]) -> TeamAliases:
    return TeamAliases(questions, lambda: clock[0])


def test_one_question_runs_at_a_time_and_asks_for_all(aliases: TeamAliases, questions: Questions) -> None:
    for id in ("a", "b", "c"):
        aliases.want(id)
    assert len(questions.asked) == 1
    questions.asked[0].callback({"a": "research"})
    assert aliases.name("a") == "research"
    assert len(questions.asked) == 2
    questions.asked[1].callback({"b": "science", "c": ""})
    assert [aliases.name(id) for id in ("b", "c", "d")] == ["science", "", ""]
    aliases.want("c")
    assert len(questions.asked) == 2


def test_names_are_read_again_once_in_a_while(aliases: TeamAliases, questions: Questions, clock: list[float]) -> None:
    aliases.want("a")
    questions.asked[0].callback({"a": "research"})
    aliases.keep_only({"a"})
    assert len(questions.asked) == 1
    clock[0] += REFRESH
    aliases.keep_only({"a"})
    questions.asked[1].callback({"a": "science"})
    assert aliases.name("a") == "science"
    aliases.keep_only(set())
    assert aliases.name("a") == ""


def test_a_database_that_is_away_is_asked_at_the_next_scrape(aliases: TeamAliases, questions: Questions) -> None:
    questions.is_away = True
    aliases.want("a")
    assert aliases.name("a") == ""
    questions.is_away = False
    aliases.keep_only({"a"})
    questions.asked[0].callback({"a": "research"})
    assert aliases.name("a") == "research"


def test_without_a_scrape_few_names_are_known(
    aliases: TeamAliases, questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team_aliases, "MOST_NAMES", 5)
    for number in range(100):
        aliases.want(str(number))
        questions.asked[-1].callback({str(number): "name"})
        assert sum(bool(aliases.name(str(each))) for each in range(number + 1)) <= 5
