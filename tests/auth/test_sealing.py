"""The keys of servers at rest."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.sealing import Sealer, Unsealable
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.stored_models import StoredModel

MASTER = Secret("sk-master-0123456789")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(texts, texts)
def test_what_was_sealed_can_be_opened_and_does_not_show(text: str, owner: str) -> None:
    sealed = Sealer(MASTER, os.urandom).seal(Secret(text), owner)
    assert Sealer(MASTER, os.urandom).open(sealed, owner) == Secret(text)
    assert sealed.isascii()
    if len(text) > 3:
        assert text not in sealed


def test_the_same_text_is_never_sealed_the_same() -> None:
    sealer = Sealer(MASTER, os.urandom)
    assert sealer.seal(Secret("x"), "a") != sealer.seal(Secret("x"), "a")


def test_another_secret_and_another_owner_open_nothing() -> None:
    sealed = Sealer(MASTER, os.urandom).seal(Secret("server-key"), "one")
    for sealer, owner in ((Sealer(Secret("other"), os.urandom), "one"), (Sealer(MASTER, os.urandom), "two")):
        with pytest.raises(Unsealable):
            sealer.open(sealed, owner)


@given(st.data())
def test_a_changed_text_opens_nothing(data: st.DataObject) -> None:
    sealer = Sealer(MASTER, os.urandom)
    sealed = sealer.seal(Secret("server-key"), "one")
    place = data.draw(st.integers(0, len(sealed) - 1))
    changed = (
        sealed[:place] + data.draw(st.characters().filter(lambda each: each != sealed[place])) + sealed[place + 1 :]
    )
    try:
        found = sealer.open(changed, "one")
    except Unsealable:
        return
    # base64 has several spellings of its last character
    assert place >= len(sealed) - 3 and found == Secret("server-key")


@given(st.text(max_size=60))
def test_any_text_is_refused_cleanly(text: str) -> None:
    with pytest.raises(Unsealable):
        Sealer(MASTER, os.urandom).open(text, "one")


def test_without_a_secret_nothing_is_sealed() -> None:
    sealer = Sealer(None, os.urandom)
    assert not sealer.can_seal
    with pytest.raises(Unsealable):
        sealer.seal(Secret("x"), "one")


def test_the_reason_says_what_to_do() -> None:
    sealed = Sealer(MASTER, os.urandom).seal(Secret("server-key"), "one")
    model = StoredModel("one", "qwen", {}, api_key=sealed)
    assert Sealer(MASTER, os.urandom).key_of(model) == Secret("server-key")
    assert Sealer(None, os.urandom).key_of(StoredModel("one", "qwen", {})) is None
    with pytest.raises(ValueError, match="VLLM_PASSTHROUGH_SALT_KEY"):
        Sealer(Secret("other"), os.urandom).key_of(model)


def test_a_master_key_and_its_hash_are_the_same_secret_and_a_salt_key_wins() -> None:
    plain = Settings(master_key=Secret("sk-1234")).sealing_secret
    hashed = Settings(
        master_key=Secret("sha256:88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b")
    ).sealing_secret
    assert plain is not None and plain == hashed
    assert Settings(master_key=Secret("sk-1234"), salt_key=Secret("salt")).sealing_secret == Secret("salt")
    assert Settings().sealing_secret is None


def test_a_sealer_shows_no_secret() -> None:
    assert MASTER.reveal() not in repr(Sealer(MASTER, os.urandom))
