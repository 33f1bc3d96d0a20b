"""How the list of models is made: in steps, once for equal callers, and anew when something changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, Cooperator

from tests.upstreams.fleets import make_router
from tests.upstreams.test_routing import DEFAULT, A
from tests.upstreams.test_served_models import served, told
from twisted_vllm.auth.records import Principal
from twisted_vllm.config.settings import ModelEntry, PriceList, RoutingSettings
from twisted_vllm.http.net.bounded_turns import Cooperate
from twisted_vllm.proxy.model_listing import MAX_LISTED, STEP, ModelListing
from twisted_vllm.upstreams.router import Router

MASTER = Principal("master", "master")
#: seconds from one turn to the next
TURN = 0.001


class Permissions:
    """Allows everything, and counts what was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def may_use_model(self, principal: Principal, name: str) -> bool:
        self.asked += 1
        return True

    def check_may_list(self, principal: Principal) -> None:
        """Allow it."""


def cards(count: int, start: int = 0) -> dict[str, Any]:
    return {"data": [{"id": f"model-{number}"} for number in range(start, start + count)]}


def one_step_a_turn(clock: Clock) -> Cooperate:
    return Cooperator(lambda: lambda: True, lambda work: clock.callLater(TURN, work)).cooperate


class Listing:
    """A listing in front of the default server, which lists so many models."""

    def __init__(self, count: int, *entries: ModelEntry) -> None:
        self.clock = Clock()
        self.entries = entries
        self.router: Router = make_router(entries, DEFAULT)
        self.permissions = Permissions()
        # each server is asked once
        models, self.client = served(self.clock, *(told(cards(count)) for _ in range(len(entries) + 2)))
        self.listing = ModelListing(
            self.router,
            models,
            self.permissions,
            entries=lambda: self.entries,
            default_prices=PriceList,
            created=1,
            cooperate=one_step_a_turn(self.clock),
        )

    def listed(self, principal: Principal = MASTER) -> Deferred[bytes]:
        return self.listing.listed(principal, {}, {})

    def turns(self, answer: Deferred[bytes]) -> Iterator[None]:
        """Let turns pass until there is an answer."""
        got: list[Any] = []
        answer.addBoth(got.append)
        while not got:
            self.clock.advance(TURN)
            yield
        self.got = got[0]


def test_a_short_list_is_there_at_once() -> None:
    listing = Listing(STEP - 1)
    assert list(listing.turns(listing.listed())) == []
    assert len(json.loads(listing.got)["data"]) == STEP - 1


def test_a_list_of_thousands_of_models_is_written_in_steps() -> None:
    listing = Listing(5_000)
    turns = len(list(listing.turns(listing.listed())))
    assert turns >= 5_000 // STEP
    assert [each["id"] for each in json.loads(listing.got)["data"]] == [f"model-{number}" for number in range(5_000)]


def test_no_list_has_more_than_its_bound() -> None:
    listing = Listing(9_000, ModelEntry("a/*", "*", A))
    list(listing.turns(listing.listed()))
    assert len(json.loads(listing.got)["data"]) == MAX_LISTED


def test_equal_lists_are_written_once_until_the_model_list_changes() -> None:
    listing = Listing(3)
    listing.listed()
    asked = listing.permissions.asked
    for _ in range(5):
        assert listing.listed().called
    assert listing.permissions.asked == asked
    listing.listed(Principal("key", "k", models=("model-*",)))
    assert listing.permissions.asked > asked
    listing.router.update([ModelEntry("new", "model-1", DEFAULT)], DEFAULT, RoutingSettings())
    list(listing.turns(listing.listed()))
    # of a model with an entry, the entry's name counts
    assert [each["id"] for each in json.loads(listing.got)["data"]] == ["new", "model-0", "model-2"]


def test_a_list_that_nobody_waits_for_is_not_written_to_its_end() -> None:
    listing = Listing(5_000)
    answer = listing.listed()
    listing.clock.advance(TURN)
    answer.cancel()
    failed: list[Any] = []
    answer.addErrback(failed.append)
    assert failed[0].check(CancelledError)
    asked = listing.permissions.asked
    listing.clock.advance(TURN)
    assert listing.permissions.asked == asked
    assert not listing.clock.getDelayedCalls()


def test_what_fails_while_a_list_is_written_fails_the_list() -> None:
    listing = Listing(5_000)
    answer = listing.listed()
    del listing.permissions.asked
    list(listing.turns(answer))
    assert listing.got.check(AttributeError)


@pytest.mark.parametrize(
    ("principal", "entries", "own"),
    [
        (MASTER, (), True),
        (Principal("key", "k"), (), True),
        (Principal("key", "k", models=("*",)), (), False),
        (Principal("key", "k", team_models=("a",)), (), False),
        (Principal("key", "k", aliases={"a": "b"}), (), False),
        (MASTER, (ModelEntry("a", "a", A),), False),
    ],
)
def test_the_lone_servers_own_answer_is_for_those_who_may_see_all(
    principal: Principal, entries: tuple[ModelEntry, ...], own: bool
) -> None:
    assert Listing(1, *entries).listing.forwards(principal) is own
