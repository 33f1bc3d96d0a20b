"""How much of a prompt and an answer is kept: an opt-out is never overridden."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.log_bodies import FULL, METADATA, MODES, OFF
from twisted_vllm.observability.contents.modes import Wishes, decide, lowest, wants_no_texts, wants_nothing_kept

MODE = st.sampled_from(MODES)
SAID = st.none() | MODE
WISHES = st.builds(Wishes, MODE, st.lists(MODE, max_size=3).map(tuple), SAID, SAID, st.booleans(), st.booleans())


@pytest.mark.parametrize(
    ("wishes", "mode"),
    [
        (Wishes(), OFF),
        (Wishes(FULL), FULL),
        (Wishes(OFF, (FULL,)), FULL),
        (Wishes(FULL, (METADATA,)), METADATA),
        (Wishes(OFF, (FULL, METADATA)), METADATA),
        (Wishes(OFF, (METADATA,), FULL), FULL),
        (Wishes(OFF, (), METADATA, FULL), FULL),
        (Wishes(FULL, (FULL,), FULL, METADATA), METADATA),
        (Wishes(FULL, (FULL,), FULL, OFF), OFF),
        (Wishes(FULL, (FULL,), OFF, FULL), OFF),
        (Wishes(FULL, (OFF,), FULL, FULL), OFF),
        (Wishes(FULL, key=FULL, texts_off=True), METADATA),
        (Wishes(FULL, key=FULL, no_log=True), OFF),
        (Wishes(OFF, texts_off=True), OFF),
    ],
)
def test_the_order_of_precedence(wishes: Wishes, mode: str) -> None:
    assert decide(wishes) == mode


@given(WISHES)
def test_no_opt_out_is_ever_overridden(wishes: Wishes) -> None:
    mode = decide(wishes)
    if wishes.no_log or OFF in (wishes.key, wishes.team, *wishes.models):
        assert mode == OFF
    if wishes.texts_off:
        assert mode != FULL


@given(WISHES)
def test_nothing_is_kept_that_nobody_asked_for(wishes: Wishes) -> None:
    asked = [each for each in (wishes.default, *wishes.models, wishes.team, wishes.key) if each is not None]
    assert MODES.index(decide(wishes)) <= max(map(MODES.index, asked))


@given(WISHES, st.sampled_from(["texts_off", "no_log"]))
def test_a_further_opt_out_keeps_no_more(wishes: Wishes, which: str) -> None:
    values = {name: getattr(wishes, name) for name in Wishes.__struct_fields__}
    more = Wishes(**{**values, which: True})
    assert lowest((decide(more), decide(wishes))) == decide(more)


@pytest.mark.parametrize(
    ("value", "asks"), [(b"true", True), (b"1", True), (b"False", False), (b"0", False), (b"", False)]
)
def test_a_client_asks_by_headers(value: bytes, asks: bool) -> None:
    assert wants_nothing_kept({b"x-litellm-no-log": value}) is asks
    assert wants_no_texts({b"x-litellm-enable-message-redaction": value}) is asks
    assert not wants_nothing_kept({})
    assert not wants_no_texts({})
