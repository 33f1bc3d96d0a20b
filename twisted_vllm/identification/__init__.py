"""What identifying a caller may have to wait for: the latest keys of the database, the keys of a token's issuer."""
