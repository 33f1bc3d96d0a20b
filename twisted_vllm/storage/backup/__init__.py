"""Backups: one file with a consistent copy of the database and of the ledger's spool, and how it is put back."""
