"""A fixture of a version: its files, and what has to be true of them after an upgrade."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
from pathlib import Path

import msgspec

RELEASES = Path(__file__).parent
#: the names of the archives in a version's directory, and of what has to be true
SQLITE, POSTGRESQL, EXPECTED = "sqlite.tar.xz", "postgresql.tar.xz", "expected.json"
#: the configuration, which all versions of a kind of fixture share
CONFIGURATION = "gateway.yaml"
#: in the archive of PostgreSQL: what pg_dump wrote
DUMP = "postgresql.sql"

#: the settings of all fixtures
MASTER_KEY, SALT_KEY = "sk-fixture-master-0000", "fixture-salt-key"


class Key(msgspec.Struct, frozen=True):
    """A key.

    Attributes:
        alias: its alias.
        key: its value, which opens nothing but the fixture.
        spend: what it has spent, in microdollars.
        answers: the statuses of requests that are sent one after the other.
        error: the code of the last one's error; empty if it is none.
        model: the model to ask for.
    """

    alias: str
    key: str
    spend: int
    answers: tuple[int, ...]
    error: str = ""
    model: str = "small"


class Expected(msgspec.Struct, frozen=True):
    """What has to be true after an upgrade.

    Attributes:
        version: the version that left the files.
        commit: the commit that was run.
        schema: the revision of its schema.
        keys: the keys.
        months: how many requests there were in each month, such as ``2026-09``.
        waiting: how many rows wait in the spool alone, at least.
        audit: how many rows the audit log has.
        teams: microdollars that each team has spent.
        warnings: what the version says of the configuration.
        microdollars: the price of a request.
        tokens: the tokens of a request.
        ended: the moment at which its last process was killed, in seconds since 1970.
    """

    version: str
    commit: str
    schema: str
    keys: tuple[Key, ...]
    months: dict[str, int]
    waiting: int
    audit: int
    teams: dict[str, int]
    warnings: tuple[str, ...]
    microdollars: int
    tokens: int
    ended: int

    @property
    def requests(self) -> int:
        """All requests."""
        return sum(self.months.values())


def versions() -> list[str]:
    """Return the versions that there are fixtures of."""
    return sorted(path.parent.name for path in RELEASES.glob(f"*/{EXPECTED}"))


def expected(version: str, kind: str) -> Expected:
    """Return what has to be true of a version's files, of the kind `SQLITE` or `POSTGRESQL`."""
    found: dict[str, Expected] = msgspec.json.decode(
        (RELEASES / version / EXPECTED).read_bytes(), type=dict[str, Expected]
    )
    return found[kind]


def unpack(version: str, kind: str, directory: Path) -> None:
    """Unpack a version's files into a directory."""
    with (
        lzma.open(RELEASES / version / kind) as file,
        tarfile.open(fileobj=io.BytesIO(file.read())) as archive,
    ):
        archive.extractall(directory, filter="data")


def pack(directory: Path, names: list[str], target: Path) -> None:
    """Pack files of a directory, the same bytes for the same files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(names):
            info = tarfile.TarInfo(name)
            content = (directory / name).read_bytes()
            info.size, info.mode = len(content), 0o600
            archive.addfile(info, io.BytesIO(content))
    target.write_bytes(lzma.compress(data.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def files_below(directory: Path) -> list[str]:
    """Return the names of all files below a directory."""
    return [
        os.path.relpath(os.path.join(place, name), directory)
        for place, _, names in os.walk(directory)
        for name in names
    ]
