"""The usage spool: rows on disk until the database has them."""
