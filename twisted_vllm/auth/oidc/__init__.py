"""Signing in at an OpenID provider: what is decided, without I/O."""
