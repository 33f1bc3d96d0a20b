"""Alembic's migrations, which run at start."""
