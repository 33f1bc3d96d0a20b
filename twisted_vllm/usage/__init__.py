"""What requests use: meters, pricing, records and the spool."""
