"""Small gateways' files, and archives of any content."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import attrs
import msgspec
import pytest

from tests.builders import usage_rows
from tests.storage.retention_contract import Store, at
from tests.whole_ledger import check_ledger
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.backup import writing
from twisted_vllm.storage.backup.manifest import HEADER, MANIFEST, File, Manifest, encode
from twisted_vllm.storage.backup.place import Place
from twisted_vllm.storage.backup.restoring import Wish, restore
from twisted_vllm.storage.backup.writing import Source, SqliteParts
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import HEAD
from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.spool.format import encode_rows, header_line

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)


def unheard(_done: int, _total: int) -> None:
    """Hear of bytes, and do nothing."""


def unread(_number: int) -> None:
    """Likewise of bytes that were read."""


@attrs.frozen
class Files:
    """The files of a gateway that is stopped, in a directory."""

    directory: Path

    @property
    def main(self) -> Path:
        return self.directory / "keys.sqlite"

    @property
    def usage(self) -> Path:
        return self.directory / "keys.sqlite-usage"

    @property
    def spool(self) -> Path:
        return self.directory / "keys.sqlite.spool"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.main}"

    @property
    def place(self) -> Place:
        return Place.of(self.main, self.spool)

    def source(self, secret: str = "") -> Source:
        return Source(self.spool, Secret(secret) if secret else None, "0.1.0", lambda: NOON)

    def back_up(self, target: Path, secret: str = "") -> Manifest:
        source = self.source(secret)
        with SqliteParts(self.main, source) as parts:
            return writing.write(parts, source, target, unheard)

    def restore(
        self, backup: Path, *, force: bool = False, keep_spool: bool = False, secret: str = ""
    ) -> tuple[list[str], list[str]]:
        """Return what was moved aside, and the warnings."""
        warnings: list[str] = []
        wish = Wish(Secret(secret) if secret else None, force, keep_spool, warnings.append, lambda: NOON)
        _, moves = restore(backup, self.place, wish, unheard)
        return [target for _, target in moves], warnings

    def contents(self) -> dict[str, bytes]:
        """Everything that is there, by name, without what SQLite makes and removes as it likes."""
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and not path.name.endswith(("-wal", "-shm"))
        }


def fill(directory: Path, *, stored: int = 20, waiting: int = 7) -> Files:
    """Make files with rows of two months, of which the database has some and the spool the others."""
    directory.mkdir(parents=True, exist_ok=True)
    files = Files(directory)
    store = Store(files.url)
    half = stored // 2
    rows = [*usage_rows(half, time=at("2026-05-05")), *usage_rows(stored - half, half, time=at("2026-06-06"))]
    written = store.database.write(rows)
    accounts = store.database.open_accounts("f00d", own=True)
    accounts.add([written], Position(1, 100))
    while accounts.flush(force=True)[0]:
        pass
    store.close()
    files.spool.mkdir(mode=0o700)
    later = usage_rows(waiting, stored, time=at("2026-06-07"))
    (files.spool / "f00d-000002.spool").write_bytes(header_line() + encode_rows(later))
    return files


def requests_of(files: Files) -> int:
    """Return how many requests the sums count, and check that rows and sums agree."""
    return len(check_ledger(files.url, is_stopped=False))


def revision_of(files: Files) -> str:
    engine = make_engine(parse_url(Secret(files.url)), connections=1)
    try:
        with engine.connect() as connection:
            return str(connection.exec_driver_sql("SELECT version_num FROM vllm_passthrough_schema").scalar())
    finally:
        engine.dispose()


# archives of any content


def header_of(files: dict[str, bytes], /, **changes: object) -> Manifest:
    found = Manifest(
        format=1,
        version="0.1.0",
        database="sqlite",
        schema=HEAD,
        works_with=HEAD,
        taken_at="2026-06-15T12:00:00.000Z",
        files=tuple(File(name, len(content)) for name, content in files.items()),
    )
    return msgspec.structs.replace(found, **changes)


def member(name: str, content: bytes, **fields: object) -> bytes:
    """Return a member of a tar, as the form of a backup has it or with other fields."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def archive_of(path: Path, members: Iterable[bytes]) -> Path:
    path.write_bytes(gzip.compress(b"".join(members) + bytes(1024)))
    return path


def make_archive(path: Path, files: dict[str, bytes], /, **changes: object) -> Path:
    """Write an archive that is in order, but for what its header says."""
    header = header_of(files, **changes)
    summed = [
        msgspec.structs.replace(each, sha256=hashlib.sha256(content).hexdigest())
        for each, content in zip(header.files, files.values(), strict=True)
    ]
    manifest = msgspec.structs.replace(header, files=tuple(summed), finished_at=header.taken_at)
    return archive_of(
        path,
        [
            member(HEADER, encode(header)),
            *(member(name, content) for name, content in files.items()),
            member(MANIFEST, encode(manifest)),
        ],
    )


def unpacked(path: Path) -> dict[str, bytes]:
    """Read an archive with Python's own tar, which knows nothing of backups."""
    data = path.read_bytes()
    if path.name.endswith(".zst"):
        data = pytest.importorskip("backports.zstd").decompress(data)
    else:
        data = gzip.decompress(data)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            assert info.mode == 0o600
            found[info.name] = file.read()
    return found
