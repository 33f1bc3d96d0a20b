"""The usage ledger in the database."""
