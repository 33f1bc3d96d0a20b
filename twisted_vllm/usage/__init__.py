"""Usage of requests: meters, pricing, records and the spool."""
