from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twisted_vllm.access.credentials import CREDENTIAL_HEADERS, credential_of

OTHERS = [b"x-litellm-api-key", b"api-key", b"x-api-key"]


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"bEaReR"])
def test_a_bearer_key_is_found_however_its_scheme_is_written(scheme: bytes) -> None:
    assert credential_of({b"authorization": scheme + b" sk-1234"}) == "sk-1234"


def test_the_guides_bearer_anything_is_a_credential() -> None:
    assert credential_of({b"authorization": b"bearer anything"}) == "anything"


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("value", [b"sk-1234", b"Bearer sk-1234", b"bearer  sk-1234 ", b" sk-1234\t"])
def test_a_key_is_found_in_the_other_headers_with_or_without_its_scheme(name: bytes, value: bytes) -> None:
    assert credential_of({name: value}) == "sk-1234"


def test_authorization_comes_first_and_the_others_in_their_order() -> None:
    headers = {name: b"sk-" + name for name in OTHERS} | {b"authorization": b"Bearer sk-authorization"}
    for name in [b"authorization", *OTHERS]:
        assert credential_of(headers) == "sk-" + name.decode()
        del headers[name]
    assert credential_of(headers) is None


@pytest.mark.parametrize(
    "value", [b"Basic dXNlcjpwYXNz", b"Digest x", b"sk-1234", b"", b"Bearer", b"Bearer ", b"Bearer \t"]
)
def test_an_authorization_without_a_bearer_key_leaves_it_to_the_next_header(value: bytes) -> None:
    assert credential_of({b"authorization": value}) is None
    assert credential_of({b"authorization": value, b"x-api-key": b"sk-1234"}) == "sk-1234"


@pytest.mark.parametrize("value", [b"", b"  ", b"Bearer", b"Bearer  "])
def test_an_empty_key_header_leaves_it_to_the_next(value: bytes) -> None:
    assert credential_of({b"x-litellm-api-key": value, b"x-api-key": b"sk-1234"}) == "sk-1234"


def test_every_header_that_may_hold_a_key_is_listed_in_lower_case() -> None:
    assert {b"authorization", *OTHERS} == CREDENTIAL_HEADERS


@given(st.dictionaries(st.sampled_from(sorted(CREDENTIAL_HEADERS)), st.binary(max_size=40)))
@example({b"api-key": b"\x1c"})
@example({b"authorization": b"Bearer \xff\xfe"})
@example({b"api-key": "Bearer kéy".encode()})
def test_no_bytes_make_it_raise_and_no_credential_is_empty(headers: dict[bytes, bytes]) -> None:
    found = credential_of(headers)
    assert found is None or found
    if found is not None:
        found.encode("utf-8")
