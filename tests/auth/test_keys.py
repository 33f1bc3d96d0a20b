from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.auth.authenticator import Authenticator, generate_key, hash_key, name_key
from twisted_vllm.auth.grants import Changes, FormerKey, TeamGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.records import ANONYMOUS, MASTER, KeyRecord
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import BlockedApiKey, ExpiredApiKey, GatewayError, InvalidApiKey, MissingApiKey

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SECONDS = NOW.timestamp()
KEY = "sk-tenant-0123456789abcd"
MASTER_KEY = "sk-master-0123456789"


def made(key: str = KEY, **changes: Any) -> KeyRecord:
    record = KeyRecord(token=hash_key(key), key_name=name_key(key), created_at=NOW, updated_at=NOW, created_by="master")
    return attrs.evolve(record, **changes)


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + key.encode()}


def closed(*records: KeyRecord) -> Authenticator:
    return Authenticator(Secret(MASTER_KEY), KeyIndex(records))


def opened(*records: KeyRecord) -> Authenticator:
    return Authenticator(None, KeyIndex(records))


def test_a_key_is_hashed_as_litellm_does() -> None:
    assert hash_key("sk-1234") == hashlib.sha256(b"sk-1234").hexdigest()


def test_a_generated_key_carries_all_the_randomness_it_was_given() -> None:
    asked: list[int] = []

    def randbytes(count: int) -> bytes:
        asked.append(count)
        return bytes(range(200, 200 + count))

    key = generate_key(randbytes)
    assert asked == [32]
    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", key)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_different_randomness_makes_different_keys(one: bytes, other: bytes) -> None:
    assert (generate_key(lambda _: one) == generate_key(lambda _: other)) is (one == other)


def test_a_key_is_named_by_its_last_four_characters() -> None:
    assert name_key(KEY) == "sk-...abcd"


@given(st.text())
def test_any_text_can_be_hashed(key: str) -> None:
    assert re.fullmatch("[0-9a-f]{64}", hash_key(key))
    assert re.fullmatch("[0-9a-f]{64}", hash_key(key + "\ud800"))


def test_a_valid_key_acts_as_itself_with_its_permissions() -> None:
    record = made(models=("qwen*",), allowed_routes=("inference",), key_alias="team")
    principal = closed(record).authenticate(bearer(KEY), SECONDS)
    assert (principal.kind, principal.name, principal.hash_prefix) == ("key", "team", record.token[:8])
    assert (principal.models, principal.allowed_routes) == (("qwen*",), ("inference",))
    assert not principal.is_administrator


def test_a_key_without_an_alias_is_called_by_its_last_characters() -> None:
    assert closed(made()).authenticate(bearer(KEY), SECONDS).name == "sk-...abcd"


def test_the_master_key_acts_as_the_master() -> None:
    assert closed().authenticate(bearer(MASTER_KEY), SECONDS) is MASTER


def test_a_virtual_key_that_became_the_master_key_is_the_master() -> None:
    assert closed(made(MASTER_KEY)).authenticate(bearer(MASTER_KEY), SECONDS) is MASTER


@pytest.mark.parametrize("key", [MASTER_KEY[:-1], MASTER_KEY + "0", MASTER_KEY.upper(), hash_key(MASTER_KEY), "sk-x"])
def test_anything_else_is_refused(key: str) -> None:
    with pytest.raises(InvalidApiKey):
        closed(made()).authenticate(bearer(key), SECONDS)


def test_the_hash_of_a_key_does_not_open_what_the_key_opens() -> None:
    with pytest.raises(InvalidApiKey):
        closed(made()).authenticate(bearer(hash_key(KEY)), SECONDS)


def test_a_request_without_a_key_is_told_where_to_put_one() -> None:
    with pytest.raises(MissingApiKey) as refused:
        closed().authenticate({}, SECONDS)
    for header in ("Authorization: Bearer", "x-litellm-api-key", "api-key", "x-api-key"):
        assert header in refused.value.message


def test_a_request_with_another_scheme_is_told_that_it_is_not_bearer() -> None:
    with pytest.raises(MissingApiKey, match="no bearer key"):
        closed().authenticate({b"authorization": b"Basic c2VjcmV0"}, SECONDS)


@pytest.mark.parametrize("authenticator", [closed, opened])
def test_a_key_works_until_its_last_moment_and_not_after(authenticator: Callable[..., Authenticator]) -> None:
    gate = authenticator(made(expires=NOW + timedelta(seconds=1)))
    assert gate.authenticate(bearer(KEY), SECONDS + 0.999).kind == "key"
    with pytest.raises(ExpiredApiKey):
        gate.authenticate(bearer(KEY), SECONDS + 1)


@pytest.mark.parametrize("authenticator", [closed, opened])
def test_a_blocked_key_is_refused_also_when_the_gateway_is_open(authenticator: Callable[..., Authenticator]) -> None:
    with pytest.raises(BlockedApiKey):
        authenticator(made(blocked=True)).authenticate(bearer(KEY), SECONDS)


@pytest.mark.parametrize("headers", [{}, bearer("anything"), {b"authorization": b"Basic x"}, {b"api-key": b"sk-x"}])
def test_an_open_gateway_takes_everyone_as_anonymous(headers: dict[bytes, bytes]) -> None:
    assert opened(made()).authenticate(headers, SECONDS) is ANONYMOUS


def test_a_virtual_key_keeps_its_permissions_on_an_open_gateway() -> None:
    assert opened(made(models=("a",))).authenticate(bearer(KEY), SECONDS).models == ("a",)


def test_the_master_key_is_recognised_and_nothing_else() -> None:
    assert closed().is_master(MASTER_KEY)
    assert not closed().is_master(KEY)
    assert not opened().is_master("")
    assert opened().is_open
    assert not closed().is_open


@given(st.text(min_size=1).filter(lambda text: text.strip() == text and text.isprintable()))
def test_no_refusal_tells_the_key_or_its_hash(key: str) -> None:
    records = (made(blocked=True), made("sk-old-0123456789abc", expires=NOW))
    for credential in (f"sk-{key}-tail", KEY, "sk-old-0123456789abc"):
        with pytest.raises(GatewayError) as refused:
            closed(*records).authenticate(bearer(credential), SECONDS)
        shown = refused.value.body().decode() + repr(refused.value) + repr(refused.value.headers())
        assert credential not in shown
        assert hash_key(credential)[:8] not in shown


@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_the_master_key_may_be_known_by_its_hash_alone(spelling: Callable[[str], str]) -> None:
    given = f"sha256:{spelling(hash_key(MASTER_KEY))}"
    authenticator = Authenticator(Secret(given), KeyIndex())
    assert authenticator.authenticate(bearer(MASTER_KEY), SECONDS) is MASTER
    assert authenticator.is_master(MASTER_KEY)
    for wrong in (given, hash_key(MASTER_KEY)):
        with pytest.raises(InvalidApiKey):
            authenticator.authenticate(bearer(wrong), SECONDS)


def test_a_key_whose_team_was_blocked_is_refused_and_told_that_it_is_the_team() -> None:
    index = KeyIndex([made(team_id="x")])
    index.apply(Changes(teams={"x": TeamGrant(blocked=True)}))
    with pytest.raises(BlockedApiKey, match="team"):
        Authenticator(None, index).authenticate(bearer(KEY), SECONDS)


def test_a_value_that_was_replaced_works_until_its_grace_is_over_and_then_says_why() -> None:
    index = KeyIndex([made("sk-new-value-0123456789")])
    token = hash_key(KEY)
    index.apply(Changes(former={token: FormerKey(token, hash_key("sk-new-value-0123456789"), SECONDS + 1)}))
    authenticator = Authenticator(Secret(MASTER_KEY), index)
    assert authenticator.authenticate(bearer(KEY), SECONDS).kind == "key"
    with pytest.raises(ExpiredApiKey, match="replaced"):
        authenticator.authenticate(bearer(KEY), SECONDS + 1)
