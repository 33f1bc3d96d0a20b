"""A copy of the program that is one release further: it expands the schema, and contracts it when asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import twisted_vllm
from twisted_vllm.storage.schema import HEAD, WORKS_WITH
from twisted_vllm.storage.schema_steps import number_of

_PACKAGE = Path(twisted_vllm.__file__).parent

EXPANDED, CONTRACTED = f"{number_of(HEAD) + 1:04}_origins", f"{number_of(HEAD) + 2:04}_origins_required"
#: the release after it, which needs the contraction
FURTHER = f"{number_of(HEAD) + 3:04}_further"

_START = """from alembic import op
import sqlalchemy as sa

revision = {revision!r}
down_revision = {before!r}
branch_labels = None
depends_on = None
"""
_EXPAND = (
    _START
    + """STEP = "expand"


def upgrade():
    op.add_column("vllm_passthrough_changes", sa.Column("origin", sa.String(16)))
    op.add_column("vllm_passthrough_users", sa.Column("origin", sa.String(16), nullable=False, server_default="older"))
    op.create_table("vllm_passthrough_origins", sa.Column("name", sa.String(16), primary_key=True))
"""
)
_CONTRACT = (
    _START
    + """STEP = "contract"
WORKS_WITH = {before!r}


def upgrade():
    op.execute("UPDATE vllm_passthrough_changes SET origin = 'older' WHERE origin IS NULL")
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("vllm_passthrough_changes", "origin", nullable=False)
    else:
        op.execute(
            "CREATE TRIGGER vllm_passthrough_changes_origin BEFORE INSERT ON vllm_passthrough_changes "
            "WHEN NEW.origin IS NULL BEGIN SELECT RAISE(ABORT, 'origin is required'); END"
        )
"""
)
_FURTHER = (
    _START
    + """STEP = "expand"


def upgrade():
    op.create_table("vllm_passthrough_further", sa.Column("name", sa.String(16), primary_key=True))
"""
)


def make_next(directory: Path, *, further: bool = False) -> Path:
    """Make the copy, and return what PYTHONPATH has to be for it.

    Args:
        directory: where to make it.
        further: whether it is yet another release, whose step comes after the contraction.
    """
    package = directory / "twisted_vllm"
    shutil.copytree(_PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(_PACKAGE.parent / "twisted", directory / "twisted", ignore=shutil.ignore_patterns("*.cache"))
    versions = package / "storage/migrations/versions"
    (versions / f"{EXPANDED}.py").write_text(_EXPAND.format(revision=EXPANDED, before=HEAD))
    (versions / f"{CONTRACTED}.py").write_text(_CONTRACT.format(revision=CONTRACTED, before=EXPANDED))
    head, needed, works_with = CONTRACTED, EXPANDED, EXPANDED
    if further:
        (versions / f"{FURTHER}.py").write_text(_FURTHER.format(revision=FURTHER, before=CONTRACTED))
        head, needed = FURTHER, FURTHER
    schema = package / "storage/schema.py"
    text = schema.read_text()
    for line, value in (
        (f'HEAD = "{HEAD}"', f'HEAD = "{head}"'),
        ("NEEDED = HEAD", f'NEEDED = "{needed}"'),
        (f'WORKS_WITH = "{WORKS_WITH}"', f'WORKS_WITH = "{works_with}"'),
    ):
        assert text.count(f"\n{line}\n") == 1
        text = text.replace(f"\n{line}\n", f"\n{value}\n")
    schema.write_text(text)
    tables = package / "storage/tables.py"
    text = tables.read_text()
    column = '    Column("stamp", BigInteger),\n'
    assert text.count(column) == 1
    tables.write_text(text.replace(column, f'{column}    Column("origin", String(16), default="next"),\n'))
    return directory
