"""What every IKeyStore promises; a subclass gives the store as its fixture `store`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import attrs
import pytest
import pytest_twisted
from zope.interface.verify import verifyObject

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.store.interfaces import AliasExists, IKeyStore, KeyExists

MADE = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def token(number: int) -> str:
    return f"{number:064x}"


def key_record(number: int, alias: str | None = None, made: datetime = MADE) -> KeyRecord:
    return KeyRecord(
        token=token(number),
        key_name="sk-...abcd",
        created_at=made,
        updated_at=made,
        created_by="master",
        key_alias=alias,
    )


FULL = KeyRecord(
    token=token(7),
    key_name="sk-...wxyz",
    key_alias="équipe ✓ 'quoted' \"twice\" %s :x",
    models=("qwen*", "llama-?", "b"),
    allowed_routes=("/v1/chat/completions", "inference"),
    blocked=True,
    expires=MADE + timedelta(days=3650),
    metadata={"nested": {"list": [1, 2.5, None, True, "ü"]}, "large": 2**62, "": {}},
    tags=("first", "zweitens"),
    user_id="ada",
    team_id="engines",
    created_at=MADE,
    created_by="0123abcd",
    updated_at=MADE + timedelta(microseconds=1),
)


class KeyStoreContract:
    def test_it_provides_the_interface(self, store: IKeyStore) -> None:
        assert verifyObject(IKeyStore, store)

    @pytest_twisted.ensureDeferred
    async def test_a_new_store_is_empty(self, store: IKeyStore) -> None:
        assert await store.load() == []

    @pytest_twisted.ensureDeferred
    async def test_a_key_comes_back_as_it_was_given(self, store: IKeyStore) -> None:
        assert await store.insert(FULL) is None
        assert await store.load() == [FULL]

    @pytest_twisted.ensureDeferred
    async def test_what_was_left_out_comes_back_empty(self, store: IKeyStore) -> None:
        await store.insert(key_record(1))
        assert await store.load() == [key_record(1)]

    @pytest_twisted.ensureDeferred
    async def test_times_come_back_as_the_same_moment_with_a_time_zone(self, store: IKeyStore) -> None:
        india = timezone(timedelta(hours=5, minutes=30))
        await store.insert(attrs.evolve(key_record(1, made=MADE.astimezone(india)), expires=MADE.astimezone(india)))
        [found] = await store.load()
        assert (found.created_at, found.expires) == (MADE, MADE)
        assert found.created_at.tzinfo is not None
        assert found.expires is not None and found.expires.tzinfo is not None

    @pytest_twisted.ensureDeferred
    async def test_keys_are_loaded_oldest_first(self, store: IKeyStore) -> None:
        for number, age in ((3, 0), (1, 2), (2, 1)):
            await store.insert(key_record(number, made=MADE - timedelta(seconds=age)))
        assert [found.token for found in await store.load()] == [token(1), token(2), token(3)]

    @pytest_twisted.ensureDeferred
    async def test_a_key_is_not_stored_twice(self, store: IKeyStore) -> None:
        await store.insert(key_record(1, "first"))
        with pytest.raises(KeyExists):
            await store.insert(key_record(1, "second"))
        assert await store.load() == [key_record(1, "first")]

    @pytest_twisted.ensureDeferred
    async def test_an_alias_belongs_to_one_key(self, store: IKeyStore) -> None:
        await store.insert(key_record(1, "mine"))
        with pytest.raises(AliasExists):
            await store.insert(key_record(2, "mine"))
        assert await store.load() == [key_record(1, "mine")]

    @pytest_twisted.ensureDeferred
    async def test_a_key_that_exists_is_told_before_its_alias(self, store: IKeyStore) -> None:
        await store.insert(key_record(1, "mine"))
        with pytest.raises(KeyExists):
            await store.insert(key_record(1, "mine"))

    @pytest_twisted.ensureDeferred
    async def test_many_keys_may_have_no_alias(self, store: IKeyStore) -> None:
        await store.insert(key_record(1))
        await store.insert(key_record(2))
        assert len(await store.load()) == 2

    @pytest_twisted.ensureDeferred
    async def test_deleting_returns_what_was_there_in_the_order_asked(self, store: IKeyStore) -> None:
        for number in (1, 2, 3):
            await store.insert(key_record(number))
        assert await store.delete([token(3), token(9), token(1), token(3)]) == [token(3), token(1)]
        assert await store.load() == [key_record(2)]

    @pytest_twisted.ensureDeferred
    async def test_deleting_nothing_deletes_nothing(self, store: IKeyStore) -> None:
        await store.insert(key_record(1))
        assert await store.delete([]) == []
        assert await store.load() == [key_record(1)]

    @pytest_twisted.ensureDeferred
    async def test_a_deleted_key_and_its_alias_can_be_made_again(self, store: IKeyStore) -> None:
        await store.insert(key_record(1, "mine"))
        await store.delete([token(1)])
        await store.insert(key_record(1, "mine"))
        assert await store.load() == [key_record(1, "mine")]
