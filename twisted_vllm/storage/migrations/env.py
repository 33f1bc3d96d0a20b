"""Alembic's environment: runs the migrations in the transaction that ``storage.schema`` opened."""

from __future__ import annotations

from alembic import context

from twisted_vllm.storage.tables import VERSION_TABLE
from twisted_vllm.storage.usage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
