"""Limits counted by several processes together, in Redis."""
