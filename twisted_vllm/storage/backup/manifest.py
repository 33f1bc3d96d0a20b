"""What a backup says of itself, and which names its files may have."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from twisted_vllm.storage.errors import StoreError

#: the version of the form of a backup
FORMAT = 1
#: the first member of the archive: what is in it, and how large each file is
HEADER = "backup.json"
#: the last one: the same, with the sum of each file
MANIFEST = "manifest.json"
#: the most bytes that either may have
MAX_JSON = 16 * 1024 * 1024

#: SQLite's main file
MAIN = "database/main.sqlite3"
#: before the names of the files of the ledger's rows
USAGE = "database/usage/"
#: what pg_dump wrote
DUMP = "database/postgresql.dump"
#: before the names of the files of the ledger's spool
SPOOL = "spool/"

#: the kinds of databases
SQLITE, POSTGRESQL = "sqlite", "postgresql"

#: how many times larger the files may be than the archive, once they are larger than the bytes
MAX_RATIO, RATIO_FROM = 1_000, 1 << 30

_NAMES = re.compile(
    r"database/main\.sqlite3|database/usage/[0-9]{4}-[0-9]{2}(?:-[0-9]{2})?\.db|database/postgresql\.dump"
    r"|spool/[0-9a-z]{1,64}-[0-9]{1,12}\.spool|spool/[0-9a-z-]{1,80}\.damaged"
    r"|spool/background/[0-9a-z]{1,64}-[0-9A-Za-z_-]{1,64}\.pending"
)


class BackupError(StoreError):
    """A backup cannot be made, read or put back. The message is for the operator and holds no secret."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a backup.

    Attributes:
        name: its name in the archive.
        bytes: its size.
        sha256: its sum in hexadecimal digits; empty in the header.
    """

    name: str
    bytes: int
    sha256: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """What a backup says of itself.

    Attributes:
        format: the version of this form.
        version: of the gateway that made it.
        database: `SQLITE` or `POSTGRESQL`.
        schema: the revision of the database's schema.
        works_with: the oldest revision whose code works with it.
        taken_at: the moment whose state it has, in UTC.
        files: its files, in their order.
        finished_at: when it was complete, in UTC; empty in the header.
        namespace: PostgreSQL's schema with the tables; empty for SQLite.
        sealed: how many keys of servers it has that are encrypted with the salt key or the master key.
        seal: a random text that is encrypted with the same; empty if no key is.
        missing: files of the ledger's rows that the database knows and that were not there.
    """

    format: int
    version: str
    database: str
    schema: str
    works_with: str
    taken_at: str
    files: tuple[File, ...]
    finished_at: str = ""
    namespace: str = ""
    sealed: int = 0
    seal: str = ""
    missing: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The bytes of all files."""
        return sum(each.bytes for each in self.files)

    def bytes_of(self, prefix: str) -> int:
        """Return the bytes of the files whose names begin so."""
        return sum(each.bytes for each in self.files if each.name.startswith(prefix))

    def count_of(self, prefix: str) -> int:
        """Return how many files have names that begin so."""
        return sum(each.name.startswith(prefix) for each in self.files)


def may_be_named(name: str) -> bool:
    """Return whether a file of a backup may have this name."""
    return _NAMES.fullmatch(name) is not None


def encode(manifest: Manifest) -> bytes:
    """Return it as JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def decode_header(text: bytes, archive_bytes: int) -> Manifest:
    """Return the header of an archive.

    Args:
        text: the first member.
        archive_bytes: the size of the archive.

    Raises:
        BackupError: it is not the header of a backup that this version reads, or it promises what cannot be.
    """
    try:
        written = msgspec.json.decode(text, type=dict)
        form = written.get("format")
    except msgspec.DecodeError:
        raise BackupError("it is not a backup of vllm-passthrough: its first file is not readable") from None
    if isinstance(form, int) and form > FORMAT:
        raise BackupError(
            f"it has the form {form} of a newer version ({str(written.get('version'))[:40]!r}): use that version"
        )
    try:
        found = msgspec.convert(written, type=Manifest)
    except msgspec.ValidationError as error:
        raise BackupError(f"its {HEADER} cannot be used: {error}") from None
    if found.format != FORMAT or found.database not in (SQLITE, POSTGRESQL):
        raise BackupError(f"its {HEADER} cannot be used: it has no known format or database")
    names = [each.name for each in found.files]
    for name in names:
        if not may_be_named(name):
            raise BackupError(f"it names {name[:100]!r}, which no file of a backup is called")
    if len(set(names)) != len(names):
        raise BackupError("it has two files of one name")
    if (MAIN if found.database == SQLITE else DUMP) not in names:
        raise BackupError("it has no database")
    if any(each.bytes < 0 for each in found.files):
        raise BackupError("it has a file of less than no bytes")
    if found.bytes > max(RATIO_FROM, archive_bytes * MAX_RATIO):
        raise BackupError(
            f"it claims to hold {found.bytes:,} bytes in a file of {archive_bytes:,}, which no backup does: "
            "it is not unpacked"
        )
    return found


def check_manifest(text: bytes, header: Manifest, sums: Sequence[str]) -> Manifest:
    """Return the manifest, which was compared with the header and with what was read.

    Raises:
        BackupError: they differ.
    """
    try:
        found = msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        raise BackupError(f"its {MANIFEST} cannot be used: {error}") from None
    bare = tuple(msgspec.structs.replace(each, sha256="") for each in found.files)
    if msgspec.structs.replace(found, files=bare, finished_at="") != header:
        raise BackupError(f"its {HEADER} and {MANIFEST} contradict each other: it was changed or is damaged")
    for each, sum in zip(found.files, sums, strict=True):
        if each.sha256 != sum:
            raise BackupError(f"{each.name} is not what was written (its SHA-256 differs): the backup is damaged")
    return found
