"""What the processes of one gateway share: changes, settings, the ledger, metrics and readiness."""
