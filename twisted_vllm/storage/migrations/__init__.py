"""The steps from an empty database to the tables of this version, run by Alembic at start."""
