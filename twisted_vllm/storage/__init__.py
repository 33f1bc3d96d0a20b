"""The database: engine, migrations, repositories."""
