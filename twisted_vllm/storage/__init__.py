"""The database: engine, migrations, repositories and the usage ledger."""
