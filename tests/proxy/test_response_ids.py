"""The ids of stored responses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy.gateway_fakes import server
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.errors import ResponseNotFound
from twisted_vllm.proxy.response_ids import ResponseIds, hides_responses, response_id_of, stored_response_in

ONE, TWO = server("one:8000"), server("two:8000")
ADA = Principal(kind="key", name="ada", key_id="a" * 32, user_id="u", team_id="t")
BOB = Principal(kind="key", name="bob", key_id="b" * 32, user_id="u", team_id="t")


def ids(randbytes: Callable[[int], bytes] = os.urandom) -> ResponseIds:
    return ResponseIds([ONE, TWO], randbytes)


@given(st.binary(min_size=8, max_size=8), st.sampled_from([ONE, TWO]))
def test_an_id_tells_its_owner_and_its_server(random: bytes, where: object) -> None:
    known = ids(lambda _: random)
    made = known.make(ADA, where)  # type: ignore[arg-type]  # one of both servers
    assert re.fullmatch(r"resp_[0-9a-f]{32}", made)
    assert known.server_of(ADA, made) is where
    assert known.server_of(MASTER, made) is where
    with pytest.raises(ResponseNotFound):
        known.server_of(BOB, made)


def test_an_id_does_not_repeat() -> None:
    known = ids()
    assert len({known.make(ADA, ONE) for _ in range(1000)}) == 1000


@pytest.mark.parametrize("position", range(5, 37))
def test_no_digit_of_an_id_can_be_changed(position: int) -> None:
    made = ids().make(ADA, ONE)
    other = "1" if made[position] != "1" else "2"
    with pytest.raises(ResponseNotFound):
        ids().server_of(ADA, made[:position] + other + made[position + 1 :])


@pytest.mark.parametrize(
    "given_id",
    ["", "resp_", "resp_0123456789abcdef", "x" * 1000, "resp_" + "A" * 32, "resp_" + "\u0663" * 32, "\ud800"],
)
def test_any_other_text_is_the_id_of_no_key(given_id: str) -> None:
    with pytest.raises(ResponseNotFound) as caught:
        ids().server_of(ADA, given_id)
    assert caught.value.message == f"Response with id '{given_id[:100]}' not found."
    assert ids().server_of(MASTER, given_id) is ids().server_of(ANONYMOUS, given_id) is None


def test_an_id_of_a_server_that_is_gone_is_unknown() -> None:
    with pytest.raises(ResponseNotFound):
        ids().server_of(ADA, response_id_of(ADA.key_id, "three:8000", b"12345678"))


def test_a_long_key_id_is_none_of_another() -> None:
    long = Principal(kind="key", name="x", key_id="k" * 500)
    assert ids().server_of(long, ids().make(long, TWO)) is TWO


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/v1/responses", None),
        (b"/v1/responses/", None),
        (b"/v1/responses/render", None),
        (b"/v1/chat/completions", None),
        (b"/v1/models/%41", None),
        (b"/v1/responses/a", "a"),
        (b"/v1/responses/a/", "a"),
        (b"/v1/responses/a/cancel", "a"),
        (b"/v1/responses/a/input_items", "a"),
        (b"/v1/responses/render/cancel", "render"),
        (b"/v1/responses/%61", "a"),
        (b"/v1%2fresponses%2Fa", "a"),
        (b"/v1/%72esponses/a", "a"),
        (b"/prefix/v1/responses/a", "a"),
        (b"/v1/responses/%ff", "\ufffd"),
        (b"/v1/responses/a%0Ab", "a\nb"),
    ],
)
def test_the_id_in_a_path_is_what_vllm_reads(path: bytes, found: str | None) -> None:
    assert stored_response_in(path) == found


@pytest.mark.parametrize("path", [b"/v1/responses", b"/a/v1/responses", b"/a/v1%2Fresponses", b"/v1/responses%0A"])
def test_a_path_that_vllm_reads_as_the_route_of_responses_is_known(path: bytes) -> None:
    assert hides_responses(path)
    assert not hides_responses(path + b"/render")
    assert not hides_responses(path + b"%0a%0a")


def test_a_response_of_a_server_that_left_says_so_to_its_owner_alone() -> None:
    known = ids()
    made = known.make(ADA, TWO)
    known.reconfigure([ONE])
    for caller in (ADA, MASTER):
        with pytest.raises(ResponseNotFound, match="no longer configured") as told:
            known.server_of(caller, made)
        assert "two" not in told.value.message
    with pytest.raises(ResponseNotFound, match="not found"):
        known.server_of(BOB, made)
    known.reconfigure([ONE, TWO])
    assert known.server_of(ADA, made) is TWO
