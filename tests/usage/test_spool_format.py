"""The spool's format: written rows are read back, and damage is detected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import usage_row, usage_rows
from twisted_vllm.usage.records import MAX_NUMBER, Payer, Target, UsageRow, payer_of, target_of
from twisted_vllm.usage.spool import format as spool_format
from twisted_vllm.usage.spool.format import (
    NewerFormat,
    clean,
    decode_line,
    encode_line,
    encode_rows,
    header_line,
    read_lines,
)

ROW = usage_row(1, end_user="Ada\n\r\u2028é", tags=("a", "b"), headers={"x-project": "p"}, prices=(("name", "q"),))


def spool_file(directory: Path, *lines: bytes) -> Path:
    path = directory / "name-000001.spool"
    path.write_bytes(b"".join(lines))
    return path


def read_all(path: Path) -> spool_format.Lines[UsageRow]:
    return read_lines(path, 0, path.stat().st_size, 1_000_000)


def test_a_row_comes_back_as_it_was_on_one_line() -> None:
    line = encode_rows([ROW])
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == [ROW]


@given(st.text(), st.integers(-MAX_NUMBER, MAX_NUMBER), st.lists(st.text(max_size=9)))
def test_any_text_that_fits_comes_back(text: str, number: int, tags: list[str]) -> None:
    row = usage_row(1, route=text[:100].replace("\0", ""), cost=number, tags=tuple(t.replace("\0", "") for t in tags))
    assert decode_line(encode_rows([row])[:-1]) == [row]


@given(st.data())
def test_a_line_with_any_bit_changed_is_detected(data: st.DataObject) -> None:
    line = bytearray(encode_rows([ROW])[:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] ^= 1 << data.draw(st.integers(0, 7))
    # the checksum's hex digits may change their case without a change of meaning
    assert decode_line(bytes(line)) in ((None, [ROW]) if place < 8 else (None,))


@given(st.binary(max_size=100))
def test_bytes_that_are_not_a_line_are_detected(data: bytes) -> None:
    assert decode_line(data) is None


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({"end_user": "a\0b"}, {"end_user": "a\ufffdb"}),
        ({"model": "\ud800"}, {"model": "?"}),
        ({"headers": {"x-a": "\0"}}, {"headers": {"x-a": "\ufffd"}}),
        ({"tags": ("\0" * 2500,)}, {"tags": ("\ufffd" * 255,)}),
        ({"prices": (("name", "\0"),)}, {"prices": (("name", "\ufffd"),)}),
        ({"end_user": "é\ud83d" + "y" * 3000}, {"end_user": "é?" + "y" * 253}),
    ],
)
def test_what_no_database_takes_is_mended_when_it_is_written(
    written: dict[str, object], kept: dict[str, object]
) -> None:
    assert decode_line(encode_rows([usage_row(1, **written)])[:-1]) == [usage_row(1, **kept)]


def test_cleaning_brings_numbers_into_range_and_leaves_the_rest_alone() -> None:
    assert clean(usage_row(1, prompt_tokens=10**30, bytes_in=-(10**30))) == usage_row(
        1, prompt_tokens=MAX_NUMBER, bytes_in=-MAX_NUMBER
    )
    assert clean(ROW) == ROW


def test_cleaning_cuts_what_is_too_long() -> None:
    row = clean(usage_row(1, end_user="x" * 3000, route="/" + "x" * 5000, user_id="é" * 300))
    assert row == usage_row(1, end_user="x" * 255, route="/" + "x" * 4095, user_id="é" * 255)


def test_many_rows_stand_in_lines_of_some(tmp_path: Path) -> None:
    rows = usage_rows(2 * spool_format.LINE_ROWS + 1)
    lines = encode_rows(rows)
    assert lines.count(b"\n") == 3
    assert list(read_all(spool_file(tmp_path, header_line(), lines)).rows) == rows


def test_a_line_is_read_whole_though_fewer_rows_are_enough(tmp_path: Path) -> None:
    rows = usage_rows(20)
    path = spool_file(tmp_path, header_line(), encode_rows(rows[:10]), encode_rows(rows[10:]))
    first = read_lines(path, 0, path.stat().st_size, 3)
    assert list(first.rows) == rows[:10]
    assert list(read_lines(path, first.end, path.stat().st_size, 3).rows) == rows[10:]


def test_rows_are_read_from_where_one_stopped(tmp_path: Path) -> None:
    rows = usage_rows(10)
    path = spool_file(tmp_path, header_line(), *(encode_rows([row]) for row in rows))
    size = path.stat().st_size
    first = read_lines(path, 0, size, 4)
    second = read_lines(path, first.end, size, 100)
    assert [*first.rows, *second.rows] == rows
    assert second.end == size


def test_a_line_longer_than_one_read_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_format, "READ_BYTES", 16)
    rows = usage_rows(3)
    path = spool_file(tmp_path, header_line(), *(encode_rows([row]) for row in rows))
    found: list[UsageRow] = []
    position = 0
    while position < path.stat().st_size:
        lines = read_lines(path, position, path.stat().st_size, 100)
        assert lines.damaged == []
        found += lines.rows
        position = lines.end
    assert found == rows


def test_a_file_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = spool_file(tmp_path, header_line(), encode_rows([ROW]), b"rest")
    size = path.stat().st_size
    first = read_lines(path, 0, size + 100, 100)
    assert (list(first.rows), first.end) == ([ROW], size - len(b"rest"))
    for start, damaged in ((first.end, [b"rest"]), (size + 50, [])):
        lines = read_lines(path, start, size + 100, 100)
        assert (list(lines.rows), list(lines.damaged), lines.end) == ([], damaged, size + 100)


def test_damaged_lines_are_given_back_and_the_rest_is_read(tmp_path: Path) -> None:
    good = [encode_rows([row]) for row in usage_rows(3)]
    torn = good[2][:-20]
    path = spool_file(tmp_path, header_line(), good[0], b"zz\r" + good[1], b"\n", good[1], torn)
    lines = read_all(path)
    assert list(lines.rows) == usage_rows(2)
    assert list(lines.damaged) == [b"zz\r" + good[1][:-1], b"", torn]
    assert lines.end == path.stat().st_size


def test_a_file_whose_head_is_damaged_is_read(tmp_path: Path) -> None:
    lines = read_all(spool_file(tmp_path, b"vllm-passthrough-sp\x00ol 1\n", encode_rows([ROW])))
    assert list(lines.rows) == [ROW]
    assert list(lines.damaged) == [b"vllm-passthrough-sp\x00ol 1"]


def test_a_file_of_an_older_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows lack the fields that were added later, and have some that were taken away."""
    text = b'[["a",5,["key"],["m"],"","eve",null,200]]'
    path = spool_file(tmp_path, header_line(), encode_line(text))
    monkeypatch.setattr(spool_format, "VERSION", spool_format.VERSION + 1)
    lines = read_all(path)
    [row] = lines.rows
    assert (row.id, row.time, row.end_user, row.headers, row.status, row.bytes_out) == ("a", 5, "eve", None, 200, 0)
    assert (payer_of(row.payer), target_of(row.target)) == (Payer("key"), Target("m"))
    assert list(lines.damaged) == []


@pytest.mark.parametrize("text", [b'[["a",5,["key"],[1]]]', b'[["a",5,{},["m"]]]', b'[["a",5,["key"],null]]'])
def test_a_row_that_refers_to_nonsense_is_damaged(text: bytes) -> None:
    assert decode_line(encode_line(text)[:-1]) is None


def test_a_file_of_a_newer_format_is_not_read(tmp_path: Path) -> None:
    path = spool_file(tmp_path, b"vllm-passthrough-spool 99\n", b"something else\n")
    with pytest.raises(NewerFormat):
        read_all(path)
