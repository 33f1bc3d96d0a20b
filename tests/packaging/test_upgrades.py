"""The present gateway on what former versions left: nothing is lost, and nobody has to do anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.packaging.releases.fixture import CONFIGURATION, RELEASES, SQLITE, expected, unpack, versions
from tests.packaging.releases.upgrading import check_upgrade
from twisted_vllm.storage.schema import HEAD


@pytest.mark.parametrize("version", versions())
def test_a_version_is_upgraded_by_starting_the_present_one(version: str, tmp_path: Path) -> None:
    unpack(version, SQLITE, tmp_path)
    shutil.copy(RELEASES / version / CONFIGURATION, tmp_path)
    check_upgrade(tmp_path, expected(version, SQLITE), f"sqlite:////{tmp_path}/twisted_vllm.sqlite3")


def test_fixtures_have_older_schemas_and_rows_that_wait() -> None:
    found = [expected(version, SQLITE) for version in versions()]
    assert {each.schema for each in found} > {HEAD, "0010_partitions"}
    assert all(each.waiting and len(each.months) >= 3 for each in found)
