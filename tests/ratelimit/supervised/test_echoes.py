"""What the housekeeper finds in the database of what a worker did is no act of its own, for a while."""

from __future__ import annotations

from twisted_vllm.ratelimit.supervised.echoes import Echoes

NOW = 1_000_000.0


def test_what_was_done_may_echo_for_some_seconds() -> None:
    echoes = Echoes(seconds=5)
    assert not echoes.may_be_echo("k", NOW)
    echoes.done("k", NOW)
    assert echoes.may_be_echo("k", NOW + 4.9)
    assert not echoes.may_be_echo("other", NOW)
    echoes.done("k", NOW + 4)
    assert echoes.may_be_echo("k", NOW + 8)
    assert not echoes.may_be_echo("k", NOW + 9)
    # a clock that is set back
    assert not echoes.may_be_echo("k", NOW)


def test_the_acts_that_are_remembered_are_bounded() -> None:
    echoes = Echoes(most=10)
    for number in range(1000):
        echoes.done(number, NOW)
    assert len(echoes) == 10
    assert echoes.may_be_echo(999, NOW)
    assert not echoes.may_be_echo(0, NOW)
