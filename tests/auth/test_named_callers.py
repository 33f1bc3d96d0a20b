"""Callers whom others name: refused while their user or team is not known, by words of what named them."""

from __future__ import annotations

from math import inf

import pytest

from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.errors import CallerNotLookedUp, TokenNotAllowed

CALLER = TokenCaller("1d", "ada", user_id="ada", team_ids=("red", "blue"))


@pytest.fixture
def callers() -> NamedCallers:
    return NamedCallers(KeyIndex())


def know(callers: NamedCallers, *, user: bool = True, red: bool = False, blue: bool = True) -> None:
    callers.set_existence("user", "ada", user)
    callers.set_existence("team", "red", red)
    callers.set_existence("team", "blue", blue)


def test_who_was_not_looked_up_is_to_be(callers: NamedCallers) -> None:
    assert callers.unknown_names(CALLER) == [("team", "red"), ("team", "blue"), ("user", "ada")]
    with pytest.raises(CallerNotLookedUp) as raised:
        callers.principal_of(CALLER, inf)
    assert raised.value.caller is CALLER


def test_the_first_team_that_exists_counts(callers: NamedCallers) -> None:
    know(callers)
    assert callers.unknown_names(CALLER) == []
    assert callers.known_teams(CALLER) == ("blue",)
    principal = callers.principal_of(CALLER, inf)
    assert (principal.user_id, principal.team_id, principal.name) == ("ada", "blue", "ada")


@pytest.mark.parametrize("noun", ["token", "account"])
def test_a_refusal_says_what_named_the_caller(callers: NamedCallers, noun: str) -> None:
    know(callers, blue=False)
    with pytest.raises(TokenNotAllowed, match=f"None of the teams of this {noun} is known here: 'red', 'blue'"):
        callers.principal_of(CALLER, inf, noun=noun)
    know(callers, user=False)
    with pytest.raises(TokenNotAllowed, match=f"The user of this {noun}, 'ada', is not known here"):
        callers.principal_of(CALLER, inf, noun=noun)


def test_a_user_that_does_not_exist_is_made_for_those_who_make_users(callers: NamedCallers) -> None:
    """A session of the console found out that the user is gone; a token of the same user makes it again."""
    know(callers, user=False)
    assert callers.unknown_names(CALLER) == []
    assert callers.unknown_names(CALLER, makes_user=True) == [("user", "ada")]
    with pytest.raises(CallerNotLookedUp):
        callers.principal_of(CALLER, inf, makes_user=True)
    know(callers)
    assert callers.unknown_names(CALLER, makes_user=True) == []
    assert callers.principal_of(CALLER, inf, makes_user=True).user_id == "ada"


def test_all_may_have_changed(callers: NamedCallers) -> None:
    know(callers)
    callers.forget()
    assert len(callers) == 0
    assert len(callers.unknown_names(CALLER)) == 3
