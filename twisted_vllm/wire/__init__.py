"""Bytes to HTTP and back: the server channel, the upstream agent and its pool, headers, eager writes."""
