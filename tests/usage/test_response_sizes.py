"""The tokens of stored responses are remembered, as many as there is room for."""

from __future__ import annotations

from twisted_vllm.usage.response_sizes import MAX_RESPONSES, ResponseSizes


def test_a_response_has_its_tokens_and_an_unknown_one_the_assumed() -> None:
    sizes = ResponseSizes(1024)
    sizes.keep("resp_1", 30_000)
    assert (sizes.of("resp_1"), sizes.of("resp_2")) == (30_000, 1024)


def test_the_oldest_make_room() -> None:
    sizes = ResponseSizes(1024)
    for number in range(MAX_RESPONSES + 2):
        sizes.keep(str(number), number)
    assert len(sizes) == MAX_RESPONSES
    assert sizes.of("1") == 1024
    assert sizes.of("2") == 2
