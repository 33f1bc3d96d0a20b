"""The present gateway on what former versions left in PostgreSQL and in their spools."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest

from tests.packaging.releases.fixture import CONFIGURATION, DUMP, POSTGRESQL, RELEASES, expected, unpack, versions
from tests.packaging.releases.upgrading import check_upgrade


@pytest.mark.parametrize("version", versions())
def test_a_version_is_upgraded_by_starting_the_present_one(version: str, tmp_path: Path, postgresql_url: str) -> None:
    unpack(version, POSTGRESQL, tmp_path)
    shutil.copy(RELEASES / version / CONFIGURATION, tmp_path)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute((tmp_path / DUMP).read_bytes())
    check_upgrade(tmp_path, expected(version, POSTGRESQL), postgresql_url)
