"""The database: tables, migrations and repositories, off the reactor thread."""
