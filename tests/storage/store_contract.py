"""What every IStore promises; a subclass gives the store as its fixture `store`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from zope.interface.verify import verifyObject

from twisted_vllm.auth.grants import (
    NO_REVISION,
    Changes,
    EndUser,
    FormerKey,
    KeyGrant,
    OrganizationGrant,
    Revision,
    Snapshot,
    TeamGrant,
    UserGrant,
)
from twisted_vllm.auth.records import KeyRecord, Spend
from twisted_vllm.config.stored_models import StoredModel
from twisted_vllm.field_policy.rules import NO_RULES, rules_of
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited, member_id
from twisted_vllm.storage.errors import AliasExists, KeyExists
from twisted_vllm.storage.interfaces import IStore
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import (
    AuditRecord,
    BudgetRecord,
    EndUserRecord,
    FormerKeyRecord,
    Member,
    ModelRecord,
    OrganizationMember,
    OrganizationRecord,
    TeamRecord,
    UserRecord,
)
from twisted_vllm.storage.transaction import KEPT_CHANGES, Transaction

MADE = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
#: fields of users, teams and end users
CREATED: dict[str, Any] = {
    "created_at": MADE,
    "updated_at": MADE,
    "created_by": "master",
    "updated_by": "master",
}


def token(number: int) -> str:
    return f"{number:064x}"


def key_record(number: int, alias: str | None = None, made: datetime = MADE, **changes: Any) -> KeyRecord:
    return KeyRecord(
        token=token(number),
        key_id=f"{number:032x}",
        key_name="sk-...abcd",
        created_at=made,
        updated_at=made,
        created_by="master",
        key_alias=alias,
        **changes,
    )


#: every limit there is, with the largest amount of money that a database keeps
FULL_ALLOWANCE = Allowance(
    rpm=0,
    tpm=2**53,
    parallel=1,
    model_rpm={"qwen ü": 0, "b": 2},
    model_tpm={"*": 5},
    max_budget=2**63 - 1,
    soft_budget=0,
    budget_duration="1mo",
)

FULL_RULES = rules_of(("background", "tools.type=mcp"), {"n": 0, "messages.*.content": 2**53 - 1}, ("*",))

FULL = KeyRecord(
    token=token(7),
    key_id=f"{7:032x}",
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
    aliases={"gpt-4": "qwen", "ü": "ß"},
    priority=-3,
    granted_headers=("x-session-id",),
    created_at=MADE,
    created_by="0123abcd",
    updated_at=MADE + timedelta(microseconds=1),
    updated_by="master",
    rotation_count=2,
    last_rotation_at=MADE,
    allowance=FULL_ALLOWANCE,
    cache_salt="5a17",
    fields=FULL_RULES,
)


def put(store: IStore, *records: KeyRecord) -> Deferred[Any]:
    """Keep keys."""

    def work(transaction: Any) -> None:
        for record in records:
            transaction.keys.insert(record)

    return store.change(work)


def remove(store: IStore, *records: KeyRecord) -> Deferred[Any]:
    """Forget keys."""
    return store.change(lambda transaction: transaction.delete_keys(list(records)))


def all_keys(store: IStore) -> Deferred[list[KeyRecord]]:
    """Return the keys, the smallest token first."""
    return store.read(lambda transaction: transaction.keys.find())


def entry(number: int) -> AuditRecord:
    return AuditRecord(
        at=MADE + timedelta(seconds=number),
        actor="master",
        actor_name="master",
        action="key/update",
        object_type="key",
        object_id=f"{number:08x}",
        before=None,
        after={"n": number},
        request_id="r",
        client="192.0.2.1",
    )


def pages(store: IStore, query: PageQuery, status: str | None = None) -> Deferred[list[Any]]:
    """Return every page, each read for itself."""

    def work(transaction: Any) -> list[Any]:
        first = transaction.keys.page_of_status(query, status, MADE)
        return [
            transaction.keys.page_of_status(attrs.evolve(query, page=number + 1), status, MADE)
            for number in range(first.total_pages)
        ]

    return store.read(work)


def keys_of_every_kind() -> list[KeyRecord]:
    """Keys with every mixture of age, end, block and owner, many of them alike."""
    kinds = itertools.product((0, 1), (None, -1, 0, 1), (False, True), (None, "ada"))
    return [
        key_record(
            (number * 7) % 32 + 1,
            made=MADE - timedelta(days=age),
            expires=None if end is None else MADE + timedelta(days=end),
            blocked=blocked,
            user_id=user_id,
        )
        for number, (age, end, blocked, user_id) in enumerate(kinds)
    ]


SORTS = ("created_at", "expires", "key_alias", "token", "spend", "user_id")


def expected(records: Sequence[KeyRecord], query: PageQuery) -> list[str]:
    """The order in which a list must come: nothing is larger than anything, and the token decides ties."""

    def rank(record: KeyRecord) -> tuple[Any, ...]:
        value = getattr(record, query.sort_by, None)
        return (value is None, "" if value is None else value, record.token)

    return [record.token for record in sorted(records, key=rank, reverse=query.descending)]


class StoreContract:
    def test_it_provides_the_interface(self, store: IStore) -> None:
        assert verifyObject(IStore, store)

    @pytest_twisted.ensureDeferred
    async def test_a_new_store_is_empty(self, store: IStore) -> None:
        assert await all_keys(store) == []
        assert await store.load() == Snapshot(keys=[], former=[], users={}, teams={})

    @pytest_twisted.ensureDeferred
    async def test_a_key_comes_back_as_it_was_given(self, store: IStore) -> None:
        await put(store, FULL)
        assert await all_keys(store) == [FULL]

    @pytest_twisted.ensureDeferred
    async def test_what_was_left_out_comes_back_empty(self, store: IStore) -> None:
        await put(store, key_record(1))
        assert await all_keys(store) == [key_record(1)]

    @pytest_twisted.ensureDeferred
    async def test_what_the_index_keeps_is_what_it_would_make_of_the_records(self, store: IStore) -> None:
        _, changes = await put(store, FULL, key_record(1))
        grants = {record.token: KeyGrant.of(record) for record in (FULL, key_record(1))}
        assert changes.keys == grants
        assert {grant.token: grant for grant in (await store.load()).keys} == grants

    @pytest_twisted.ensureDeferred
    async def test_times_come_back_as_the_same_moment_with_a_time_zone(self, store: IStore) -> None:
        india = timezone(timedelta(hours=5, minutes=30))
        await put(store, attrs.evolve(key_record(1, made=MADE.astimezone(india)), expires=MADE.astimezone(india)))
        [found] = await all_keys(store)
        assert (found.created_at, found.expires) == (MADE, MADE)
        assert found.created_at.tzinfo is not None
        assert found.expires is not None and found.expires.tzinfo is not None

    @pytest_twisted.ensureDeferred
    async def test_a_key_is_not_stored_twice(self, store: IStore) -> None:
        await put(store, key_record(1, "first"))
        with pytest.raises(KeyExists):
            await put(store, key_record(1, "second"))
        assert await all_keys(store) == [key_record(1, "first")]

    @pytest_twisted.ensureDeferred
    async def test_an_alias_belongs_to_one_key(self, store: IStore) -> None:
        await put(store, key_record(1, "mine"))
        with pytest.raises(AliasExists):
            await put(store, key_record(2, "mine"))
        with pytest.raises(KeyExists):
            await put(store, key_record(1, "mine"))
        assert await all_keys(store) == [key_record(1, "mine")]

    @pytest_twisted.ensureDeferred
    async def test_of_two_changes_at_once_that_cannot_both_be_one_is_refused(self, store: IStore) -> None:
        refused: list[object] = []
        changes = [put(store, key_record(number, "mine")) for number in range(4)]
        for change in changes:
            change.addErrback(lambda failure: refused.append(failure.trap(AliasExists)))
        await gatherResults(changes)
        assert refused == [AliasExists] * 3
        assert len(await all_keys(store)) == 1

    @pytest_twisted.ensureDeferred
    async def test_a_change_that_fails_has_changed_nothing(self, store: IStore) -> None:
        def work(transaction: Any) -> None:
            transaction.keys.insert(key_record(1))
            transaction.write_audit(entry(1))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.change(work)
        assert await all_keys(store) == []
        assert (await store.read(lambda each: each.page_of_audit(PageQuery(sort_by="id"), None, None))).records == []
        assert await store.changes_since(NO_REVISION) == (NO_REVISION, None)

    @pytest_twisted.ensureDeferred
    async def test_a_key_is_replaced_with_its_token_and_all(self, store: IStore) -> None:
        await put(store, key_record(1, "mine"), key_record(2))
        changed = attrs.evolve(key_record(1, "other"), token=token(9))
        _, changes = await store.change(lambda each: each.replace_key(key_record(1, "mine"), changed))
        assert changes.keys == {token(1): None, token(9): KeyGrant.of(changed)}
        assert await all_keys(store) == [key_record(2), changed]
        with pytest.raises(KeyExists):
            await store.change(lambda each: each.replace_key(changed, attrs.evolve(changed, token=token(2))))

    @pytest_twisted.ensureDeferred
    async def test_a_former_value_leads_to_its_key_as_long_as_that_is_there(self, store: IStore) -> None:
        record = key_record(1)
        await put(store, record)
        former = FormerKeyRecord(token=token(8), key_id=record.key_id, works_until=MADE)
        _, changes = await store.change(lambda each: each.former.insert(former))
        assert changes.former == {token(8): FormerKey(token(8), token(1), MADE.timestamp())}

        changed = attrs.evolve(record, token=token(9))
        _, changes = await store.change(lambda each: each.replace_key(record, changed))
        expected_former = FormerKey(token(8), token(9), MADE.timestamp())
        assert changes.former == {token(8): expected_former}
        assert list((await store.load()).former) == [expected_former]
        with pytest.raises(KeyExists):
            await put(store, key_record(8))

        _, changes = await remove(store, changed)
        assert changes == Changes(keys={token(9): None}, former={token(8): None})
        await put(store, key_record(8))

    @pytest_twisted.ensureDeferred
    async def test_users_and_teams_come_back_and_the_index_is_told_of_them(self, store: IStore) -> None:
        created = CREATED | {"updated_by": "0123abcd"}
        user = UserRecord(user_id="ada ü", user_email="a@b", models=("a", "b*"), metadata={"n": [1]}, **created)
        team = TeamRecord(
            team_id="x",
            team_alias="X",
            models=(),
            blocked=True,
            allowance=FULL_ALLOWANCE,
            fields=FULL_RULES,
            **created,
        )
        plain = TeamRecord(team_id="y", **created)

        def work(transaction: Any) -> None:
            transaction.users.insert(user)
            transaction.teams.insert(team)
            transaction.teams.insert(plain)

        _, changes = await store.change(work)
        assert changes.users == {"ada ü": UserGrant(("a", "b*"))}
        assert changes.teams == {"x": TeamGrant((), True, FULL_ALLOWANCE, FULL_RULES), "y": TeamGrant()}
        assert await store.read(lambda each: (each.users.find(), each.teams.find())) == ([user], [team, plain])
        everything = await store.load()
        assert (everything.users, everything.teams) == (changes.users, {"x": changes.teams["x"]})
        assert (await store.changes_since(NO_REVISION))[1] == changes
        _, changes = await store.change(lambda each: each.teams.delete(["x", "z"]))
        assert changes.teams == {"x": None, "z": None}

    @pytest_twisted.ensureDeferred
    async def test_who_is_only_limited_is_kept_by_the_index_too(self, store: IStore) -> None:
        allowance = Allowance(model_rpm={"a": 0})

        def work(transaction: Any) -> None:
            transaction.users.insert(UserRecord(user_id="ada", allowance=allowance, **CREATED))
            transaction.teams.insert(TeamRecord(team_id="x", allowance=allowance, **CREATED))

        await store.change(work)
        everything = await store.load()
        assert everything.users == {"ada": UserGrant(allowance=allowance)}
        assert everything.teams == {"x": TeamGrant(allowance=allowance)}

    @pytest_twisted.ensureDeferred
    async def test_rules_about_fields_are_kept_by_the_index_and_shared(self, store: IStore) -> None:
        rules = rules_of((), {"n": 1})
        await store.change(lambda each: each.teams.insert(TeamRecord(team_id="x", fields=rules, **CREATED)))
        await put(store, key_record(1), key_record(2, fields=rules), FULL)
        everything = await store.load()
        assert everything.teams == {"x": TeamGrant(fields=rules)}
        grants = {grant.token: grant for grant in everything.keys}
        assert grants[token(1)].fields is NO_RULES
        assert grants[token(2)].fields is everything.teams["x"].fields is rules
        assert grants[FULL.token].fields == FULL_RULES

    @pytest_twisted.ensureDeferred
    async def test_keys_without_limits_share_the_one_value_that_says_so(self, store: IStore) -> None:
        await put(store, key_record(1), key_record(2, allowance=Allowance()), FULL)
        grants = {grant.token: grant for grant in (await store.load()).keys}
        assert grants[token(1)].allowance is grants[token(2)].allowance is UNLIMITED

    @pytest_twisted.ensureDeferred
    async def test_models_come_back_and_the_processes_are_told_of_them(self, store: IStore) -> None:
        record = ModelRecord(
            model_id="ü 1",
            model_name="qwen ✓",
            litellm_params={"model": "hosted_vllm/Qwen", "weight": 2, "input_cost_per_token": 5e-7},
            model_info={"nested": {"list": [1, 2.5, None, True, "ü\x00"]}},
            api_key="v1.sealed",
            **CREATED,
        )
        model = StoredModel(
            record.model_id,
            record.model_name,
            record.litellm_params,
            record.model_info,
            record.api_key,
            MADE.timestamp(),
        )
        _, changes = await store.change(lambda each: each.models.insert(record))
        assert changes == Changes(models={record.model_id: model})
        assert await store.read(lambda each: each.models.find()) == [record]
        assert (await store.load()).models == {record.model_id: model}
        assert (await store.changes_since(NO_REVISION))[1] == changes
        changed = attrs.evolve(record, api_key=None, model_info={})
        _, changes = await store.change(lambda each: each.models.replace(record.model_id, changed))
        assert await store.read(lambda each: each.models.get(record.model_id)) == changed
        [told] = changes.models.values()
        assert told is not None and (told.api_key, told.model_info) == (None, {})
        _, changes = await store.change(lambda each: each.models.delete([record.model_id]))
        assert changes == Changes(models={record.model_id: None})
        assert (await store.load()).models == {}

    @pytest_twisted.ensureDeferred
    async def test_end_users_come_back_and_the_index_is_told_of_those_that_matter(self, store: IStore) -> None:
        created = CREATED | {"updated_by": "0123abcd"}
        eve = EndUserRecord(user_id="é" * 255, alias="Eve", blocked=True, allowance=FULL_ALLOWANCE, **created)
        plain = EndUserRecord(user_id="bob", **created)

        def work(transaction: Any) -> None:
            for record in (eve, plain):
                transaction.end_users.insert(record)

        _, changes = await store.change(work)
        known = EndUser(Limited("end_user", eve.user_id, FULL_ALLOWANCE), True)
        assert changes.end_users == {eve.user_id: known, "bob": EndUser(Limited("end_user", "bob", UNLIMITED))}
        assert await store.read(lambda each: each.end_users.find()) == [plain, eve]
        assert (await store.load()).end_users == {eve.user_id: known}
        assert (await store.changes_since(NO_REVISION))[1] == changes
        _, changes = await store.change(lambda each: each.end_users.delete(["bob"]))
        assert changes == Changes(end_users={"bob": None})

    @pytest_twisted.ensureDeferred
    async def test_what_was_spent_is_nothing_until_it_is_set_and_every_process_is_told(self, store: IStore) -> None:
        assert await store.read(lambda each: each.spend.of("key", ["a"])) == {"a": Spend("key", "a")}
        _, changes = await store.change(lambda each: each.spend.set("key", "a", 2**62, 1_772_323_200))
        assert changes == Changes(spend=(Spend("key", "a", 2**62, 1_772_323_200),))
        assert (await store.changes_since(NO_REVISION))[1] == changes
        await store.change(lambda each: each.spend.set("key", "a", 5, 0))
        await store.change(lambda each: each.spend.set("team", "a", 6, 0))
        assert await store.read(lambda each: each.spend.of("key", ["a", "b"])) == {
            "a": Spend("key", "a", 5),
            "b": Spend("key", "b"),
        }
        found = await store.spend()
        assert sorted(found, key=repr) == [Spend("key", "a", 5), Spend("team", "a", 6)]

    @pytest_twisted.ensureDeferred
    async def test_keys_are_sorted_by_what_they_spent(self, store: IStore) -> None:
        await put(store, *(key_record(number) for number in range(1, 5)))

        def work(transaction: Any) -> None:
            for number, spend in ((1, 5), (2, 9)):
                transaction.spend.set("key", key_record(number).key_id, spend, 0)
            transaction.spend.set("user", key_record(3).key_id, 99, 0)

        await store.change(work)
        for descending, order in ((True, [2, 1, 4, 3]), (False, [3, 4, 1, 2])):
            query = PageQuery(size=3, sort_by="spend", descending=descending)
            found = await pages(store, query)
            assert [record.token for page in found for record in page.records] == [token(each) for each in order]

    @pytest_twisted.ensureDeferred
    async def test_what_a_key_spent_goes_with_it(self, store: IStore) -> None:
        await put(store, key_record(1))
        await store.change(lambda each: each.spend.set("key", key_record(1).key_id, 5, 0))
        await remove(store, key_record(1))
        assert await store.spend() == []

    @pytest_twisted.ensureDeferred
    async def test_members_come_and_go(self, store: IStore) -> None:
        def work(transaction: Any) -> None:
            members = transaction.members
            for member in (Member("x", "ada"), Member("x", "bob"), Member("y", "ada"), Member("x", "ada", "admin")):
                members.put(member)
            assert members.of_teams(["x", "z"]) == {"x": [Member("x", "ada", "admin"), Member("x", "bob")], "z": []}
            assert members.of_users(["ada"]) == {"ada": [Member("x", "ada", "admin"), Member("y", "ada")]}
            assert (members.remove("x", "bob"), members.remove("x", "bob")) == (True, False)
            members.remove_all(team_ids=["x"])
            assert members.of_users(["ada"]) == {"ada": [Member("y", "ada")]}
            members.remove_all(user_ids=["ada"])
            assert members.of_teams(["x", "y"]) == {"x": [], "y": []}

        await store.change(work)

    @pytest_twisted.ensureDeferred
    async def test_a_deleted_key_and_its_alias_can_be_made_again(self, store: IStore) -> None:
        await put(store, key_record(1, "mine"))
        _, changes = await remove(store, key_record(1, "mine"))
        assert changes.keys == {token(1): None}
        await put(store, key_record(1, "mine"))
        assert await all_keys(store) == [key_record(1, "mine")]

    @pytest_twisted.ensureDeferred
    async def test_deleting_nothing_deletes_nothing(self, store: IStore) -> None:
        await put(store, key_record(1))
        _, changes = await remove(store)
        assert changes == Changes()
        assert await all_keys(store) == [key_record(1)]

    @pytest_twisted.ensureDeferred
    async def test_the_news_are_what_changed_since_and_each_once(self, store: IStore) -> None:
        assert await store.changes_since(NO_REVISION) == (NO_REVISION, None)
        await put(store, key_record(1), key_record(2))
        await remove(store, key_record(1))
        revision, update = await store.changes_since(NO_REVISION)
        assert update == Changes(keys={token(1): None, token(2): KeyGrant.of(key_record(2))})
        assert (await store.load()).revision == revision
        assert revision.number == 3
        assert await store.changes_since(revision) == (revision, None)

    @pytest_twisted.ensureDeferred
    async def test_who_missed_too_much_gets_everything(self, store: IStore) -> None:
        def many(transaction: Any) -> None:
            for number in range(KEPT_CHANGES + 1):
                transaction.keys.delete([token(number)])

        await store.change(many)
        await put(store, key_record(1))
        revision, update = await store.changes_since(NO_REVISION)
        assert update == Snapshot(revision=revision, keys=[KeyGrant.of(key_record(1))], former=[])
        assert revision.number == KEPT_CHANGES + 2

    @pytest_twisted.ensureDeferred
    async def test_a_database_that_was_set_back_is_read_anew(self, store: IStore) -> None:
        await put(store, key_record(1))
        revision, update = await store.changes_since(Revision(1000, 5))
        assert (revision.number, update) == (1, await store.load())

    @pytest_twisted.ensureDeferred
    async def test_a_database_with_the_same_number_and_another_history_is_read_anew(self, store: IStore) -> None:
        await put(store, key_record(1))
        known, _ = await store.changes_since(NO_REVISION)
        assert await store.changes_since(known) == (known, None)
        restored = Revision(known.number, (known.stamp or 0) + 1)
        assert await store.changes_since(restored) == (known, await store.load())
        # and where the other history has gone on
        await put(store, key_record(2))
        latest = (await store.load()).revision
        assert await store.changes_since(restored) == (latest, await store.load())
        assert (await store.changes_since(known))[1] == Changes(keys={token(2): KeyGrant.of(key_record(2))})

    @pytest_twisted.ensureDeferred
    async def test_two_changes_have_two_stamps(self, store: IStore) -> None:
        await put(store, key_record(1))
        first = (await store.load()).revision
        await put(store, key_record(2))
        second = (await store.load()).revision
        assert (first.number, second.number) == (1, 2)
        assert len({first.stamp, second.stamp, None}) == 3

    @pytest_twisted.ensureDeferred
    async def test_the_audit_comes_back_by_page_time_and_object(self, store: IStore) -> None:
        def work(transaction: Any) -> None:
            for number in range(5):
                transaction.write_audit(entry(number))

        await store.change(work)

        def found(query: PageQuery, *times: Any) -> Deferred[Any]:
            return store.read(lambda transaction: transaction.page_of_audit(query, *times))

        newest = PageQuery(size=2, sort_by="id")
        page = await found(newest, None, None)
        assert [attrs.evolve(each, id=0) for each in page.records] == [entry(4), entry(3)]
        assert (page.total_count, page.total_pages) == (5, 3)
        page = await found(newest, MADE + timedelta(seconds=1), MADE + timedelta(seconds=3))
        assert [each.after for each in page.records] == [{"n": 2}, {"n": 1}]
        page = await found(attrs.evolve(newest, equals={"object_id": "00000003"}), None, None)
        assert [each.after for each in page.records] == [{"n": 3}]

    @pytest_twisted.ensureDeferred
    async def test_text_is_found_whatever_its_case_and_no_sign_in_it_is_a_wildcard(self, store: IStore) -> None:
        await put(store, key_record(1, "Team-A"), key_record(2, "team%b"), key_record(3, "other"), key_record(4))

        def found(search: str) -> Deferred[Any]:
            query = PageQuery(contains={"key_alias": search}, sort_by="key_alias", descending=False)
            return store.read(lambda transaction: transaction.keys.page_of_aliases(query))

        assert {each.key_alias for each in (await found("TEAM")).records} == {"Team-A", "team%b"}
        assert [each.key_alias for each in (await found("%")).records] == ["team%b"]
        assert (await found("")).total_count == 3

    @pytest.mark.parametrize("status", [None, "active", "expired", "revoked", "deleted"])
    @pytest_twisted.ensureDeferred
    async def test_the_pages_together_hold_each_key_that_matches_once_and_in_order(
        self, store: IStore, status: str | None
    ) -> None:
        records = keys_of_every_kind()
        await put(store, *records)
        matching = [record for record in records if status in (None, state(record))]
        for sort_by, descending in itertools.product(SORTS, (False, True)):
            query = PageQuery(size=5, sort_by=sort_by, descending=descending)
            found = await pages(store, query, status)
            assert [record.token for page in found for record in page.records] == expected(matching, query)
            assert all(0 < len(page.records) <= query.size for page in found)
            assert {page.total_count for page in found} <= {len(matching)}

    @pytest_twisted.ensureDeferred
    async def test_a_budget_changes_the_limits_of_all_who_name_it(self, store: IStore) -> None:
        own, shared = Allowance(rpm=1, max_budget=9), Allowance(rpm=5, tpm=7, budget_duration="1d")

        def work(transaction: Transaction) -> None:
            transaction.budgets.insert(BudgetRecord(budget_id="b", allowance=shared, **CREATED))
            transaction.keys.insert(key_record(1, budget_id="b", allowance=own))
            transaction.keys.insert(key_record(2, allowance=own))
            transaction.users.insert(UserRecord(user_id="ada", budget_id="b", **CREATED))
            transaction.teams.insert(TeamRecord(team_id="x", budget_id="b", **CREATED))
            transaction.end_users.insert(EndUserRecord(user_id="eve", budget_id="b", **CREATED))
            transaction.organizations.insert(OrganizationRecord(organization_id="acme", budget_id="b", **CREATED))
            transaction.members.put(Member("x", "ada", budget_id="b"))
            transaction.members.put(Member("x", "bob"))

        def effective(found: Changes | Snapshot) -> dict[str, Allowance | None]:
            keys = found.keys.values() if isinstance(found, Changes) else found.keys
            assert isinstance(keys, Iterable)
            return {
                **{grant.token: grant.allowance for grant in keys if grant},
                **{id: user.allowance for id, user in found.users.items() if user},
                **{id: team.allowance for id, team in found.teams.items() if team},
                **{id: each.allowance for id, each in found.end_users.items() if each},
                **{id: each.allowance for id, each in found.organizations.items() if each},
                **dict(found.members),
            }

        mine = member_id("x", "ada")
        await store.change(work)
        snapshot = await store.load()
        within = Allowance(rpm=1, tpm=7, max_budget=9)
        holders = ("ada", "x", "eve", "acme", mine)
        assert effective(snapshot) == {token(1): within, token(2): own, **dict.fromkeys(holders, shared)}
        assert snapshot.shared == {"b": shared}

        smaller = Allowance(tpm=1)
        _, changes = await store.change(
            lambda transaction: transaction.budgets.replace(
                "b", BudgetRecord(budget_id="b", allowance=smaller, **CREATED)
            )
        )
        changed = {token(1): Allowance(rpm=1, tpm=1, max_budget=9), **dict.fromkeys(holders, smaller)}
        assert effective(changes) == changed
        assert changes.shared == {"b": smaller}
        _, followed = await store.changes_since(snapshot.revision)
        assert isinstance(followed, Changes)
        assert effective(followed) == changed

        _, gone = await store.change(lambda transaction: transaction.members.remove_all(user_ids=["ada"]))
        assert gone.members == {mine: None}

    @pytest_twisted.ensureDeferred
    async def test_memberships_and_what_is_above_teams_come_back(self, store: IStore) -> None:
        organization = OrganizationRecord(
            organization_id="acme", organization_alias="Acme", models=("m",), metadata={"a": 1}, **CREATED
        )
        member = Member("x", "ada", "admin", Allowance(max_budget=1))
        team = TeamRecord(team_id="x", organization_id="acme", aliases={"fast": "qwen"}, **CREATED)

        def work(transaction: Transaction) -> None:
            transaction.organizations.insert(organization)
            transaction.organization_members.put(OrganizationMember("acme", "ada", "org_admin"))
            transaction.organization_members.put(OrganizationMember("acme", "bob"))
            transaction.teams.insert(team)
            transaction.members.put(Member("x", "ada"))
            transaction.members.put(member)

        _, changes = await store.change(work)
        assert changes.teams == {"x": TeamGrant(organization_id="acme", aliases={"fast": "qwen"})}
        assert changes.organizations == {"acme": OrganizationGrant(("m",))}
        assert (await store.read(lambda transaction: transaction.organizations.get("acme"))) == organization
        assert (await store.read(lambda transaction: transaction.teams.get("x"))) == team
        assert (await store.read(lambda transaction: transaction.members.of_users(["ada"]))) == {"ada": [member]}
        assert (await store.read(lambda transaction: transaction.members.get("x", "bob"))) is None
        of = await store.read(lambda transaction: transaction.organization_members.of_organizations(["acme"]))
        assert [(each.user_id, each.role) for each in of["acme"]] == [("ada", "org_admin"), ("bob", "internal_user")]


def state(record: KeyRecord) -> str:
    if record.blocked:
        return "revoked"
    return "expired" if record.expires is not None and record.expires <= MADE else "active"
