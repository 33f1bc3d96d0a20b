from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twisted_vllm.auth.credentials import (
    carried,
    credential_of,
    decoded,
    strike_out,
    without_keys,
)
from twisted_vllm.http.headers import CREDENTIAL_HEADERS

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


@pytest.mark.parametrize("value", [b"Basic dXNlcjpwYXNz", b"Digest x", b"", b"Bearer", b"Bearer ", b"Bearer \t"])
def test_an_authorization_without_a_bearer_key_leaves_it_to_the_next_header(value: bytes) -> None:
    assert credential_of({b"authorization": value}) is None
    assert credential_of({b"authorization": value, b"x-api-key": b"sk-1234"}) == "sk-1234"


def test_an_authorization_without_a_scheme_is_a_key_if_no_other_header_has_one() -> None:
    assert credential_of({b"authorization": b"sk-1234"}) == "sk-1234"
    for name in (b"x-litellm-api-key", b"api-key", b"x-api-key"):
        assert credential_of({b"authorization": b"sk-1234", name: b"sk-5678"}) == "sk-5678"


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


def handshake(offered: bytes, **more: bytes) -> dict[bytes, bytes]:
    headers = {name.encode().replace(b"_", b"-"): value for name, value in more.items()}
    return {b"upgrade": b"websocket", b"sec-websocket-protocol": offered, **headers}


@pytest.mark.parametrize(
    "offered",
    [
        b"realtime, openai-insecure-api-key.sk-1234, openai-beta.realtime-v1",
        b"openai-insecure-api-key.sk-1234",
        b"realtime,\topenai-insecure-api-key.sk-1234\t,x",
        b"OpenAI-Insecure-API-Key.sk-1234",
        b"openai-insecure-api-key., openai-insecure-api-key.sk-1234, openai-insecure-api-key.sk-5678",
    ],
)
def test_a_browser_s_key_is_found_among_the_subprotocols_of_a_websocket(offered: bytes) -> None:
    assert credential_of(handshake(offered)) == "sk-1234"


@pytest.mark.parametrize("offered", [b"", b"realtime", b"openai-insecure-api-key.", b"x-openai-insecure-api-key.sk-1"])
def test_other_subprotocols_are_no_credential(offered: bytes) -> None:
    assert credential_of(handshake(offered)) is None


@pytest.mark.parametrize("name", ["authorization", "x_litellm_api_key", "api_key", "x_api_key"])
def test_a_key_among_the_subprotocols_counts_only_without_another(name: str) -> None:
    headers = handshake(b"openai-insecure-api-key.sk-browser", **{name: b"Bearer sk-header"})
    assert credential_of(headers) == "sk-header"


def test_subprotocols_count_in_the_handshake_of_a_websocket_alone() -> None:
    offered = b"openai-insecure-api-key.sk-1234"
    assert credential_of({b"sec-websocket-protocol": offered}) is None
    assert credential_of({b"sec-websocket-protocol": offered, b"upgrade": b"h2c"}) is None


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        (b"realtime, openai-insecure-api-key.sk-1234, openai-beta.realtime-v1", b"realtime, openai-beta.realtime-v1"),
        (b"a,openai-insecure-api-key.sk-1,OPENAI-insecure-API-key.sk-2 ,b", b"a, b"),
        (b"openai-insecure-api-key.sk-1234", b""),
        (b"openai-insecure-api-key.", b""),
        (b" a,b ,, c", b" a,b ,, c"),
    ],
)
def test_every_key_is_taken_out_of_the_subprotocols_and_nothing_else(offered: bytes, kept: bytes) -> None:
    assert without_keys(offered) == kept


ENTRIES = st.sampled_from([b"realtime", b"openai-insecure-api-key.sk-1", b" OPENAI-INSECURE-API-KEY.sk-2", b"", b" x"])


@given(st.lists(ENTRIES | st.binary(max_size=8)))
def test_no_key_is_left_among_the_subprotocols(entries: list[bytes]) -> None:
    kept = without_keys(b",".join(entries))
    assert not [entry for entry in kept.split(b",") if entry.strip().lower().startswith(b"openai-insecure-api-key.")]
    assert {entry.strip() for entry in kept.split(b",")} <= {
        entry.strip() for entry in b",".join(entries).split(b",")
    } | {b""}


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({b"authorization": b"Bearer sk-0123456789"}, ("sk-0123456789",)),
        ({b"authorization": b"sk-0123456789"}, ("sk-0123456789",)),
        ({b"authorization": b"Basic dXNlcjpwYXNz"}, ("dXNlcjpwYXNz",)),
        ({b"authorization": b" bearer   two words 0123"}, ("two words 0123",)),
        ({b"x-api-key": b"Bearer sk-0123456789", b"api-key": b"another-key"}, ("another-key", "sk-0123456789")),
        ({b"proxy-authorization": b"Basic 0123456789"}, ("0123456789",)),
        ({b"sec-websocket-protocol": b"realtime, openai-insecure-api-key.0123456789"}, ("0123456789",)),
        ({b"authorization": b"Bearer m", b"api-key": b""}, ()),
        ({b"api-key": "schlüssel".encode()}, ("schlÃ¼ssel", "schlüssel")),
        ({}, ()),
    ],
)
def test_whatever_stands_where_a_credential_may_stand_is_carried(
    headers: dict[bytes, bytes], found: tuple[str, ...]
) -> None:
    assert carried(headers) == found


SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=8).filter(lambda text: decoded(text) == text)


@given(SECRETS, st.integers(0, 3), st.sampled_from(["", "/a/", "words of a message: "]))
def test_a_secret_is_struck_out_however_often_it_is_encoded(secret: str, encodings: int, before: str) -> None:
    spelled = secret
    for _ in range(encodings):
        spelled = quote(spelled, safe="")
    found = strike_out(before + spelled, [secret], "*")
    assert secret not in decoded(found)
    assert encodings == 0 or found == before + "*" or spelled == secret


@given(st.text(), st.text(min_size=8))
def test_what_holds_no_secret_stays(text: str, secret: str) -> None:
    if decoded(secret) not in decoded(text) and secret not in text:
        assert strike_out(text, [secret], "*") == text
