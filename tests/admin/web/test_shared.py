"""What all who watch see alike is computed once."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.admin.admin_harness import value_of
from twisted_vllm.admin.web.shared import Shared


class Computed:
    """A value that is computed when the test lets it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[str]] = []
        self.shared: Shared[str] = Shared(self.clock, 2.0, self._compute)

    async def _compute(self) -> str:
        waiting: Deferred[str] = Deferred()
        self.asked.append(waiting)
        return await waiting

    def get(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.shared.get())


def test_all_who_ask_meanwhile_get_one_value_and_those_who_ask_soon_the_same() -> None:
    computed = Computed()
    first, second = computed.get(), computed.get()
    assert len(computed.asked) == 1
    computed.asked[0].callback("a")
    assert (value_of(first), value_of(second)) == ("a", "a")
    computed.clock.advance(1.9)
    assert value_of(computed.get()) == "a"
    computed.clock.advance(0.1)
    third = computed.get()
    computed.asked[1].callback("b")
    assert value_of(third) == "b"


def test_a_failure_is_told_to_all_and_not_kept() -> None:
    computed = Computed()
    first, second = computed.get(), computed.get()
    computed.asked[0].errback(ValueError("no"))
    for each in (first, second):
        with pytest.raises(ValueError, match="no"):
            value_of(each)
    third = computed.get()
    computed.asked[1].callback("b")
    assert value_of(third) == "b"
