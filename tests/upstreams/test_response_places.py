"""Where a stored response is, learned from answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.upstreams.response_places import BEGINNING, MAX_PLACES, ResponsePlaces, id_at_beginning


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'{"id":"resp_1f","created_at":1,"output":[{"id":"msg_2"}]}', "resp_1f"),
        (b'{ "id" : "own-name.1" }', "own-name.1"),
        (
            b'event: response.created\ndata: {"response":{"id":"resp_a","object":"response"},"sequence_number":0}\n\n',
            "resp_a",
        ),
        (b'{"id":"resp_1', None),
        (b'{"id":"a/../b"}', None),
        (b'{"id":""}', None),
        (b'{"id":7}', None),
        (b" " * BEGINNING + b'{"id":"resp_1"}', None),
        (b"", None),
    ],
)
def test_the_id_is_read_from_the_beginning_of_an_answer(answer: bytes, found: str | None) -> None:
    assert id_at_beginning(answer) == found


@given(st.text("0123456789abcdef", min_size=1, max_size=40), st.data())
def test_an_id_that_is_cut_is_found_once_it_is_whole(name: str, data: st.DataObject) -> None:
    answer = b'{"id":"resp_%b","x":1}' % name.encode()
    cut = data.draw(st.integers(0, len(answer)))
    assert id_at_beginning(answer[:cut]) in (None, f"resp_{name}")
    assert id_at_beginning(answer) == f"resp_{name}"


def test_the_newest_places_are_remembered() -> None:
    places = ResponsePlaces()
    for index in range(MAX_PLACES + 1):
        places.keep(f"resp_{index}", "a:80")
    assert len(places) == MAX_PLACES
    assert places.find("resp_0") is None
    assert places.find(f"resp_{MAX_PLACES}") == "a:80"
    places.keep(f"resp_{MAX_PLACES}", "b:80")
    assert places.find(f"resp_{MAX_PLACES}") == "b:80"


def test_no_text_of_a_server_takes_memory() -> None:
    places = ResponsePlaces()
    places.keep("x" * 1_000_000, "a:80")
    assert len(places) == 0
