"""The ledger's tables: one row per request, look-ups that find rows, and sums by day and month.

What a client sends (an end user's name, a request id, a path) is `Text`, so that no length makes a row fail. The writer
adds to the sums after the rows (`twisted_vllm.storage.usage.gathered`). The sums outlive the rows, so they are tables
and not views.

Rows and look-ups grow with the requests and are kept for a time. They lie in partitions, which are dropped as a whole
(`twisted_vllm.storage.usage.partitions`). The other tables grow with the names that are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    tuple_,
)
from sqlalchemy import Index as Index

from twisted_vllm.ratelimit.allowance import END_USER as END_USER
from twisted_vllm.ratelimit.allowance import KEY as KEY
from twisted_vllm.ratelimit.allowance import ORGANIZATION as ORGANIZATION
from twisted_vllm.ratelimit.allowance import TEAM as TEAM
from twisted_vllm.ratelimit.allowance import USER as USER
from twisted_vllm.storage.tables import metadata as metadata
from twisted_vllm.usage.days import DAY_US as DAY_US

#: dimensions of `usage_sums`, besides the kinds of those who pay
ALL, PAYER, TAG = "all", "payer", "tag"
#: periods of `usage_sums`
DAY, MONTH = "day", "month"

#: stands in SQL for the schema of a partition's tables; see `twisted_vllm.storage.usage.partitions`
ROWS = "usage_rows"
#: the tables of a partition
rows_metadata = MetaData()

#: Each `twisted_vllm.usage.records.Payer` once. Its id is a hash of its content: no database assigns it, and rows can
#: be moved to another database.
usage_payers = Table(
    "vllm_passthrough_usage_payers",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("key_hash", Text, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("user_id", Text),
    Column("team_id", Text),
    Column("tags", JSON, nullable=False),
    Column("organization_id", Text),
    *(Index(f"vllm_passthrough_usage_payers_{name}", f"{name}_id") for name in (KEY, USER, TEAM, ORGANIZATION)),
    sqlite_with_rowid=False,
)

#: which payers have a tag
usage_payer_tags = Table(
    "vllm_passthrough_usage_payer_tags",
    metadata,
    Column("tag", Text, primary_key=True),
    Column("payer", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

#: each `twisted_vllm.usage.records.Target` once, with an id of the same kind
usage_targets = Table(
    "vllm_passthrough_usage_targets",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("model", Text, nullable=False),
    Column("server", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("prices", JSON, nullable=False),
    Index("vllm_passthrough_usage_targets_model", "model"),
    sqlite_with_rowid=False,
)

#: the partitions of the rows: from `start` to `end`, exclusive, in microseconds since 1970. They do not overlap.
usage_partitions = Table(
    "vllm_passthrough_usage_partitions",
    metadata,
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("end", BigInteger, nullable=False),
    Column("name", Text, nullable=False, unique=True),
    sqlite_with_rowid=False,
)

#: one row per `twisted_vllm.usage.records.UsageRow`, whose fields are the columns in their order; NULL is empty
usage = Table(
    "vllm_passthrough_usage",
    rows_metadata,
    Column("id", String(32), nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("payer", BigInteger, nullable=False),
    Column("target", BigInteger, nullable=False),
    Column("request_id", Text),
    Column("end_user", Text),
    Column("headers", JSON(none_as_null=True)),
    Column("status", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("error", Text),
    Column("stream", Boolean, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("total_tokens", BigInteger, nullable=False),
    Column("audio_ms", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("first_byte_us", BigInteger),
    Column("total_us", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_out", BigInteger, nullable=False),
    # NULL is one, as in nearly every row: a constant of the insert
    Column("requests", BigInteger),
    # NULL is none, likewise
    Column("attempts", Text),
    # likewise, what few requests have
    Column("request_tags", JSON(none_as_null=True)),
    Column("spend_metadata", Text),
    Column("response_id", Text),
    # added by revision 0011; see `partitions.complete_file`
    Column("details", Text),
    # Clustered by time: rows of the same batch are in the same pages. There is no other index: each would be changed
    # in another page by each row. See `usage_lookups`.
    PrimaryKeyConstraint("time", "id"),
    schema=ROWS,
    sqlite_with_rowid=False,
)

#: When the requests of somebody, or with something, began: `value` is a `lookup_id`. It is written in the order of
#: values, many rows at once. Hashes may collide, and two rows may have one time: whoever reads compares the row.
usage_lookups = Table(
    "vllm_passthrough_usage_lookups",
    rows_metadata,
    Column("value", BigInteger, nullable=False),
    Column("time", BigInteger, nullable=False),
    PrimaryKeyConstraint("value", "time"),
    schema=ROWS,
    sqlite_with_rowid=False,
)

#: what rows are looked up by, besides their payers
OF_END_USER, OF_REQUEST, OF_RESPONSE, OF_TAG, OF_FAILURE = "end_user", "request", "response", "tag", "failure"

#: the lowest status of an error
FIRST_ERROR = 400

#: names in `usage_sums` by their `name_id`
usage_names = Table(
    "vllm_passthrough_usage_names",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    sqlite_with_rowid=False,
)

#: what is added up, in this order; successful are rows with the outcome ``completed`` and a status below 400
SUMS = (
    *("requests", "successful", "failed"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens"),
    *("audio_ms", "cost", "total_us"),
)
#: the columns of `usage_sums`; ``failed`` is what is not successful
STORED_SUMS = tuple(name for name in SUMS if name != "failed")

#: the sums that are kept; those of users by day, and of keys, follow from those of payers
KINDS: dict[tuple[str, str], int] = {
    (ALL, DAY): 0,
    (ALL, MONTH): 1,
    (PAYER, DAY): 2,
    (PAYER, MONTH): 3,
    (USER, MONTH): 5,
    (TEAM, DAY): 6,
    (TEAM, MONTH): 7,
    (ORGANIZATION, DAY): 8,
    (ORGANIZATION, MONTH): 9,
    (END_USER, DAY): 10,
    (END_USER, MONTH): 11,
    (TAG, DAY): 12,
    (TAG, MONTH): 13,
}

#: Sums by day and by month (UTC), of the model with one other dimension: a million end users do not multiply the rows
#: of the keys, and a report over a year reads months. ``start`` is the period's first day, in days since 1970.
#: ``value`` is the id of a payer, or the `name_id` of a user, team, organization, end user or tag, and 0 for ``all``.
#: The values of each dimension add up to ``all``; not so for ``tag``, as a request may have several, and
#: ``organization``, as most have none. Of end users and tags, those with most usage in a period have sums of their own,
#: and `OTHER` has the rest.
usage_sums = Table(
    "vllm_passthrough_usage_sums",
    metadata,
    Column("kind", SmallInteger, nullable=False),
    Column("start", Integer, nullable=False),
    Column("value", BigInteger, nullable=False),
    Column("model", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False) for name in STORED_SUMS),
    # In the order in which they are written. Whoever reads one value over many days names the days.
    PrimaryKeyConstraint("kind", "start", "value", "model"),
    sqlite_with_rowid=False,
)

#: stands in the sums for all end users, or tags, that have none of their own
OTHER = "(other)"

#: How far the rows of a spool, by its name, were added up. See `twisted_vllm.storage.usage.marks`.
usage_marks = Table(
    "vllm_passthrough_usage_marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("what", Text, primary_key=True),
    Column("serial", BigInteger, nullable=False),
    Column("segment", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("to_segment", BigInteger, nullable=False),
    Column("to_offset", BigInteger, nullable=False),
    Column("done", Text, nullable=False),
    Column("moved_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: Which days (UTC, days since 1970) are exported, and who does it. Times are microseconds since 1970. ``requests`` is
#: what the sums counted when the files began: more of them mean rows that came late.
usage_exports = Table(
    "vllm_passthrough_usage_exports",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("state", String(8), nullable=False),
    Column("files", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("times_written", Integer, nullable=False),
    Column("finished_at", BigInteger),
    Column("claimed_by", Text),
    Column("claimed_until", BigInteger),
    Column("failures", Integer, nullable=False),
    Column("retry_at", BigInteger),
    Column("error", Text),
)

#: a row's time and id
RowKey = tuple[int, str]


def hash_id(content: bytes) -> int:
    """Return 63 bits of the hash of a content, which no database need assign."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big") >> 1


def name_id(name: str) -> int:
    """Return the id of a name in the sums; 0 is that of no name."""
    return hash_id(name.encode("utf-8", "surrogatepass")) if name else 0


def lookup_id(what: str, text: str) -> int:
    """Return the value by which rows are looked up in `usage_lookups`.

    Args:
        what: `OF_END_USER`, `OF_REQUEST`, `OF_RESPONSE`, `OF_TAG` or `OF_FAILURE`.
        text: its name or id; of failures a status or the code of an error, or empty for all of them. Rows are looked up
            by payer with the payer's id itself.
    """
    return hash_id(f"{what}:{text}".encode("utf-8", "surrogatepass"))


def failure_texts(status: int, error: str | None) -> list[str]:
    """Return the texts by which a failed row is looked up: "" as all are, the status of an error, and its code."""
    return ["", *([str(status)] if status >= FIRST_ERROR else []), *([error] if error else [])]


def has_row_key(keys: Sequence[RowKey]) -> list[ColumnElement[bool]]:
    """Return the conditions for rows of `usage` with these keys."""
    # The times say nothing more, but SQLite uses its index for them and not for pairs.
    times = usage.c.time.in_({time for time, _ in keys})
    return [times, tuple_(usage.c.time, usage.c.id).in_(keys)]
