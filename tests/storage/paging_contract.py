"""A walk through a list by cursors, on any database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import attrs
from hypothesis import strategies as st
from sqlalchemy import Connection

from twisted_vllm.storage.counts import Counts
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import UserRecord
from twisted_vllm.storage.transaction import Transaction

_BEGAN = datetime(2026, 3, 1, tzinfo=UTC)

#: the number of a user, and values with ties and with none
USERS = st.lists(
    st.tuples(st.integers(0, 60), st.sampled_from([None, "a", "b", "B"]), st.integers(0, 3)),
    max_size=40,
    unique_by=lambda each: each[0],
)
#: what happens between two pages: users that come, and users that go
BETWEEN = st.lists(st.tuples(USERS.map(lambda users: users[:3]), st.lists(st.integers(0, 60), max_size=3)), max_size=12)
SORTED_BY = st.sampled_from(["user_id", "created_at", "user_alias", "user_email"])


def _user(number: int, alias: str | None, second: int) -> UserRecord:
    moment = _BEGAN + timedelta(seconds=second)
    email = None if number % 3 else f"{number:02}@example.com"
    return UserRecord(f"u{number:02}", moment, moment, "master", "master", user_alias=alias, user_email=email)


def check_walk(
    connection: Connection,
    users: list[tuple[int, str | None, int]],
    between: list[tuple[list[tuple[int, str | None, int]], list[int]]],
    sort_by: str,
    descending: bool,
    size: int,
) -> None:
    """Walk through users while others come and go: who was there all the time is seen once, in order."""
    transaction = Transaction(connection)
    for user in users:
        transaction.users.insert(_user(*user))
    present = {f"u{number:02}" for number, _, _ in users}
    stayed, seen, steps, after = set(present), list[UserRecord](), iter(between), ""
    while True:
        page = transaction.users.page(PageQuery(1, size, after, sort_by=sort_by, descending=descending))
        assert len(page.records) <= size
        assert page.total_count == len(present)
        seen += page.records
        if page.next is None:
            break
        after = page.next
        come, go = next(steps, ([], []))
        gone = {f"u{number:02}" for number in go} & present
        transaction.users.delete(sorted(gone))
        present, stayed = present - gone, stayed - gone
        for user in come:
            # one who comes again is another
            if (name := f"u{user[0]:02}") not in present and name not in {each.user_id for each in seen}:
                transaction.users.insert(_user(*user))
                present.add(name)
                stayed.discard(name)
    names = [each.user_id for each in seen]
    assert len(set(names)) == len(names)
    assert stayed <= set(names)
    whole = [(getattr(each, sort_by) is None, getattr(each, sort_by) or "", each.user_id) for each in seen]
    if sort_by != "created_at":
        assert whole == sorted(whole, reverse=descending)


def check_numbered_pages(
    connection: Connection,
    users: list[tuple[int, str | None, int]],
    sort_by: str,
    descending: bool,
    size: int,
) -> None:
    """The pages by number are those by cursor, from whichever end they are found."""
    transaction = Transaction(connection)
    for user in users:
        transaction.users.insert(_user(*user))
    after, number = "", 0
    while True:
        number += 1
        by_cursor = transaction.users.page(PageQuery(1, size, after, sort_by=sort_by, descending=descending))
        by_number = transaction.users.page(PageQuery(number, size, sort_by=sort_by, descending=descending))
        assert by_number.records == by_cursor.records
        assert by_number.next == by_cursor.next
        assert by_number.total_pages == -(-len(users) // size)
        if by_cursor.next is None:
            break
        after = by_cursor.next
    assert not transaction.users.page(PageQuery(number + 1, size, sort_by=sort_by)).records


def check_search(
    connection: Connection,
    users: list[tuple[int, str | None, int]],
    sort_by: str,
    descending: bool,
    size: int,
    text: str,
) -> None:
    """Search users, and compare with a look at each of them, in the order of the whole list."""
    transaction = Transaction(connection)
    for user in users:
        transaction.users.insert(_user(*user))
    searched = ("user_id", "user_alias", "user_email")

    def read(search: str) -> list[UserRecord]:
        found: list[UserRecord] = []
        while True:
            page = transaction.users.page(
                PageQuery(
                    len(found) // size + 1,
                    size,
                    search=search,
                    search_in=searched,
                    sort_by=sort_by,
                    descending=descending,
                )
            )
            found += page.records
            if page.next is None:
                assert page.total_count == len(found)
                return found

    expected = [
        user for user in read("") if any(text.lower() in (getattr(user, name) or "").lower() for name in searched)
    ]
    assert read(text) == expected


def check_large_search(connection: Connection, count: int) -> None:
    """Search for what most users have: by number, by cursor, and with what another table decides."""
    transaction = Transaction(connection, counts=Counts())
    transaction.users.insert_all([_user(number, "many" if number % 5 else None, 0) for number in range(count)])
    asked = PageQuery(size=100, search="MAN", search_in=("user_alias",), sort_by="user_id", descending=False)
    expected = [f"u{number:02}" for number in range(count) if number % 5]
    expected.sort()
    seen: list[str] = []
    page = transaction.users.page(asked)
    while True:
        assert page.total_count == len(expected)
        seen += [user.user_id for user in page.records]
        if page.next is None:
            break
        page = transaction.users.page(attrs.evolve(asked, after=page.next))
    assert seen == expected
    numbered = transaction.users.page(attrs.evolve(asked, page=7))
    assert [user.user_id for user in numbered.records] == expected[600:700]
    # sorted by what may be empty, with a condition whose count is not remembered
    first = transaction.users.page(attrs.evolve(asked, sort_by="user_email"), transaction.users.are(expected[:1_500]))
    assert first.total_count == 1_500
    assert len(first.records) == 100
