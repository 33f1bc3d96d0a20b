"""Reads and edits request bodies: JSON and multipart forms. No I/O."""
