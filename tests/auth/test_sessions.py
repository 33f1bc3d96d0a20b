"""Sessions and tickets of the console in sealed form."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.authenticator import Authenticator, hash_key
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import MASTER
from twisted_vllm.auth.sessions import (
    MOST_ENDED,
    TICKET_PREFIX,
    TICKET_SECONDS,
    EndedSessions,
    Session,
    SessionSealer,
    is_ticket,
)
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import InvalidApiKey

MASTER_KEY = "sk-master-0123456789"
KEY_HASH = hash_key("sk-of-ada-0123456789")


@pytest.fixture
def sealer() -> SessionSealer:
    return SessionSealer(Secret(MASTER_KEY), os.urandom)


def session(**fields: object) -> Session:
    return Session(**{"id": "ab" * 16, "kind": "key", "token": KEY_HASH, "began": 0.0, "until": 100.0, **fields})  # type: ignore[arg-type]  # as given


def test_a_session_comes_back_as_it_was_until_it_is_over(sealer: SessionSealer) -> None:
    made = session(kind="user", caller=TokenCaller("id", "ada", team_ids=("a", "b")), provider="x")
    sealed = sealer.seal(made)
    assert sealer.open(sealed, 99.9) == made
    assert sealer.open(sealed, 100.0) is None
    assert KEY_HASH not in sealed


def test_a_session_is_no_ticket_and_a_ticket_no_session(sealer: SessionSealer) -> None:
    made = session()
    sealed, ticket = sealer.seal(made), sealer.ticket(made, 50.0)
    assert is_ticket(ticket)
    assert sealer.of_ticket(TICKET_PREFIX + sealed, 50.0) is None
    assert sealer.open(ticket.removeprefix(TICKET_PREFIX), 50.0) is None
    assert sealer.of_ticket(ticket, 50.0 + TICKET_SECONDS - 0.1) is not None
    assert sealer.of_ticket(ticket, 50.0 + TICKET_SECONDS) is None


def test_another_secret_opens_nothing(sealer: SessionSealer) -> None:
    other = SessionSealer(Secret("sk-another-0123456789"), os.urandom)
    assert other.open(sealer.seal(session()), 0.0) is None
    assert other.of_ticket(sealer.ticket(session(), 0.0), 0.0) is None


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_whatever_somebody_makes_up_is_no_session(text: str) -> None:
    sealer = SessionSealer(Secret(MASTER_KEY), os.urandom)
    assert sealer.open(text, 0.0) is None
    assert sealer.of_ticket(TICKET_PREFIX + text, 0.0) is None


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_changed_byte_spoils_it(place: int, change: int) -> None:
    sealer = SessionSealer(Secret(MASTER_KEY), os.urandom)
    sealed = bytearray(sealer.seal(session()).encode())
    place %= len(sealed)
    sealed[place] ^= change
    assert sealer.open(sealed.decode("latin-1"), 0.0) in (None, session())
    if 8 < place < len(sealed) - 4:
        assert sealer.open(sealed.decode("latin-1"), 0.0) is None


def test_neither_shows_what_it_holds(sealer: SessionSealer) -> None:
    assert repr(session()) == "<Session key>"
    assert MASTER_KEY not in repr(vars(sealer))


def test_each_session_has_a_word_of_its_own_for_its_forms() -> None:
    one, other = session(), session(id="cd" * 16)
    assert one.anti_forgery != other.anti_forgery
    assert one.id not in one.anti_forgery


def test_ended_sessions_are_bounded_and_tell_which_matter_still() -> None:
    ended = EndedSessions()
    for number in range(MOST_ENDED + 5):
        ended.end(f"{number}", float(number))
    assert not ended.has("4")
    assert ended.has("5")
    assert [id for id, _ in ended.current(float(MOST_ENDED + 2))] == [f"{MOST_ENDED + 4}", f"{MOST_ENDED + 3}"]


def test_a_ticket_acts_as_its_session_and_no_longer_than_its_key(sealer: SessionSealer) -> None:
    authenticator = Authenticator(Secret(MASTER_KEY), KeyIndex(), sealer=sealer)

    def ask(ticket: str, now: float = 10.0) -> object:
        return authenticator.authenticate({b"authorization": b"Bearer " + ticket.encode()}, now)

    master = session(kind="master", token=hash_key(MASTER_KEY))
    assert ask(sealer.ticket(master, 0.0)) == MASTER
    with pytest.raises(InvalidApiKey, match="ticket of the console is over"):
        ask(sealer.ticket(master, 0.0), TICKET_SECONDS)
    with pytest.raises(InvalidApiKey, match="master key was replaced"):
        ask(sealer.ticket(msgspec.structs.replace(master, token="0" * 64), 0.0))
    with pytest.raises(InvalidApiKey, match="does not exist any more"):
        ask(sealer.ticket(session(), 0.0))
