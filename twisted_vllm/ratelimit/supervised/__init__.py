"""Limits counted by the supervisor, for the workers of one gateway."""
