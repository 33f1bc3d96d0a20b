"""Signing in at an OpenID provider: what waits for the provider and the database."""
