"""What a request costs with many keys, end users and rows in the ledger."""
