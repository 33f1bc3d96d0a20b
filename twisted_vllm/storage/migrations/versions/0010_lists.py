"""Indexes in the order of the lists, and months of the audit log."""

from __future__ import annotations

from twisted_vllm.storage.migrations.lists_and_audit import (
    downgrade_audit,
    downgrade_lists,
    upgrade_audit,
    upgrade_lists,
)

revision = "0010_lists"
down_revision = "0009_log_bodies"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both."""
    upgrade_lists()
    upgrade_audit()


def downgrade() -> None:
    """Undo both."""
    downgrade_audit()
    downgrade_lists()
