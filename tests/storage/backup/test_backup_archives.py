"""Backups whose content somebody made up: each is refused in one line, and nothing is written."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.storage.backup.making import (
    Files,
    archive_of,
    fill,
    header_of,
    make_archive,
    member,
    unpacked,
    unread,
)
from twisted_vllm.storage.backup.archive import ArchiveWriter
from twisted_vllm.storage.backup.checking import check
from twisted_vllm.storage.backup.manifest import HEADER, MAIN, MANIFEST, BackupError, File, encode

ONE = {MAIN: b"x" * 700}
OTHER = "spool/f00d-000001.spool"


def links(kind: bytes) -> Callable[[Path], Path]:
    def made(path: Path) -> Path:
        header = member(HEADER, encode(header_of(ONE)))
        return archive_of(path, [header, member(MAIN, b"", type=kind, linkname="/etc/passwd"), member(MANIFEST, b"{}")])

    return made


def named(name: str) -> Callable[[Path], Path]:
    return lambda path: make_archive(path, {**ONE, name: b"y"})


def said(**changes: object) -> Callable[[Path], Path]:
    return lambda path: make_archive(path, ONE, **changes)


def members(*parts: bytes) -> Callable[[Path], Path]:
    return lambda path: archive_of(path, parts)


def content(data: bytes) -> Callable[[Path], Path]:
    def made(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return made


def large(path: Path) -> Path:
    """A petabyte, says the header; the archive has a few bytes."""
    return make_archive(path, ONE, files=(File(MAIN, 10**15),))


def sparse(path: Path) -> Path:
    """A file of a GNU tar that is one hole of a terabyte."""
    info = tarfile.TarInfo(MAIN)
    info.size, info.type = 0, tarfile.GNUTYPE_SPARSE
    return archive_of(path, [member(HEADER, encode(header_of(ONE))), info.tobuf(tarfile.GNU_FORMAT)])


def long_name(path: Path) -> Path:
    return archive_of(
        path, [member(HEADER, encode(header_of(ONE))), member("././@LongLink", b"a" * 600, type=b"L"), member("b", b"")]
    )


def pax(path: Path) -> Path:
    """What `tarfile` would take into memory as a whole."""
    info = tarfile.TarInfo("headers")
    info.size, info.type = 1 << 40, tarfile.XHDTYPE
    return archive_of(path, [member(HEADER, encode(header_of(ONE))), info.tobuf(tarfile.GNU_FORMAT)])


def cut(path: Path) -> Path:
    whole = make_archive(path, {MAIN: random.Random(1).randbytes(100_000)})
    whole.write_bytes(whole.read_bytes()[:-30_000])
    return whole


def flipped(path: Path) -> Path:
    """One bit of a file is another, and the archive's own sums are right."""
    text = gzip.decompress(make_archive(path, ONE).read_bytes())
    path.write_bytes(gzip.compress(text.replace(b"xxxxx", b"xxyxx", 1)))
    return path


def followed(path: Path) -> Path:
    text = gzip.decompress(make_archive(path, ONE).read_bytes())
    path.write_bytes(gzip.compress(text + b"more"))
    return path


def without_manifest(path: Path) -> Path:
    return archive_of(path, [member(HEADER, encode(header_of(ONE))), member(MAIN, ONE[MAIN])])


HOSTILE = {
    "a file above": (named("../../etc/cron.d/x"), "'../../etc/cron.d/x', which no file of a backup is called"),
    "an absolute path": (named("/etc/passwd"), "'/etc/passwd', which no file"),
    "a path up in the spool": (named("spool/../../x"), "which no file"),
    "a name with a line's end": (named("spool/f00d-000001.spool\nx"), "which no file"),
    "two files of one name": (lambda path: _twice(path), "two files of one name"),
    "a symbolic link": (links(tarfile.SYMTYPE), "is not a plain file"),
    "a hard link": (links(tarfile.LNKTYPE), "is not a plain file"),
    "a device": (links(tarfile.CHRTYPE), "is not a plain file"),
    "a block device": (links(tarfile.BLKTYPE), "is not a plain file"),
    "a pipe": (links(tarfile.FIFOTYPE), "is not a plain file"),
    "a directory": (links(tarfile.DIRTYPE), "is not a plain file"),
    "a sparse file": (sparse, "is not a plain file"),
    "a long name": (long_name, "is not a plain file"),
    "headers of a terabyte": (pax, "is not a plain file"),
    "a petabyte": (large, "claims to hold 1,000,000,000,000,000 bytes"),
    "a size below zero": (said(files=(File(MAIN, -1),)), "less than no bytes"),
    "no database": (lambda path: make_archive(path, {OTHER: b"y"}), "it has no database"),
    "another database": (said(database="oracle"), "no known format or database"),
    "a newer form": (said(format=2, version="9.0"), "it has the form 2 of a newer version ('9.0')"),
    "a changed bit": (flipped, f"{MAIN} is not what was written (its SHA-256 differs)"),
    "an end that is missing": (cut, "it is cut off"),
    "a manifest that is missing": (without_manifest, f"its {MANIFEST} is missing"),
    "something after the end": (followed, "something follows its end"),
    "a file that is missing": (
        lambda path: archive_of(path, [member(HEADER, encode(header_of(ONE))), member(MANIFEST, b"{}")]),
        f"{MAIN} is not where it should be",
    ),
    "a file too many": (lambda path: _another(path), f"its {MANIFEST} is missing"),
    "a tar of something else": (members(member("README", b"hello")), "it is not a backup of vllm-passthrough"),
    "a header that is no JSON": (members(member(HEADER, b"hello")), "its first file is not readable"),
    "a header of a list": (members(member(HEADER, b"[]")), "its first file is not readable"),
    "a header of too much": (members(member(HEADER, b" " * (17 << 20))), "may be 16,777,216 at most"),
    "a header without files": (members(member(HEADER, b'{"format": 1}')), "its backup.json cannot be used"),
    "an empty file": (content(b""), "compressed with neither zstd nor gzip"),
    "a text": (content(b"hello\n"), "compressed with neither zstd nor gzip"),
    "a gzip of a text": (content(gzip.compress(b"hello\n")), "it is cut off"),
    "a gzip of noise": (content(gzip.compress(b"n" * 2_000)), "it is damaged, or not a tar"),
    "a broken gzip": (content(b"\x1f\x8b" + b"\xff" * 50), "it is damaged"),
    "a broken zstd": (content(b"\x28\xb5\x2f\xfd" + b"\xff" * 50), "it is damaged"),
}


def _twice(path: Path) -> Path:
    header = header_of(ONE)
    header = msgspec.structs.replace(header, files=header.files * 2)
    return archive_of(path, [member(HEADER, encode(header))])


def _another(path: Path) -> Path:
    header = member(HEADER, encode(header_of(ONE)))
    return archive_of(path, [header, member(MAIN, ONE[MAIN]), member(OTHER, b"y"), member(MANIFEST, b"{}")])


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_backup_is_gets_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    make, expected = HOSTILE[name]
    backup = make(tmp_path / "backup.tar.gz")
    with pytest.raises(BackupError) as refused:
        check(backup, unread)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(BackupError):
        Files(place).restore(backup)
    assert [path for path in place.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "etc").exists()


def test_a_bomb_is_read_without_filling_the_memory(tmp_path: Path) -> None:
    size = 256 << 20
    path = tmp_path / "bomb.tar.gz"
    header = header_of({}, files=(File(MAIN, size),))
    with gzip.open(path, "wb", 1) as file:
        file.write(member(HEADER, encode(header)))
        info = tarfile.TarInfo(MAIN)
        info.size = size
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(BackupError, match=r"manifest\.json is missing"):
            check(path, unread)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@given(st.integers(0, 5_000), st.binary(min_size=1, max_size=40))
def test_bytes_that_change_are_noticed_or_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, at: int, put: bytes
) -> None:
    path = tmp_path_factory.mktemp("changed") / "backup.tar.gz"
    data = bytearray(gzip.decompress(make_archive(path, {**ONE, OTHER: b"y"}).read_bytes()))
    at %= len(data)
    data[at : at + len(put)] = put
    path.write_bytes(gzip.compress(bytes(data), 1))
    try:
        found = check(path, unread)
    except BackupError as error:
        assert "\n" not in str(error)
    else:
        assert [each.name for each in found.files] == [MAIN, OTHER]


def test_a_file_of_more_than_eight_gibibytes_fits_into_the_form() -> None:
    written = io.BytesIO()
    archive = ArchiveWriter(written, "x.tar.gz", 0)
    with pytest.raises(BackupError, match="changed its size"):
        archive.add(MAIN, 9 << 30, iter((b"x",)))
    archive.close()
    info = tarfile.TarInfo.frombuf(gzip.decompress(written.getvalue())[:512], "utf-8", "strict")
    assert (info.name, info.size) == (MAIN, 9 << 30)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
def test_any_tar_unpacks_a_backup(tmp_path: Path, suffix: str) -> None:
    if suffix == "tar.zst":
        pytest.importorskip("backports.zstd")
    files = fill(tmp_path / "gateway")
    manifest = files.back_up(tmp_path / f"backup.{suffix}")
    found = unpacked(tmp_path / f"backup.{suffix}")
    assert list(found) == [HEADER, *(each.name for each in manifest.files), MANIFEST]
    assert msgspec.json.decode(found[MANIFEST])["taken_at"] == "2026-06-15T12:00:00.000Z"
    assert found[MAIN].startswith(b"SQLite format 3")
