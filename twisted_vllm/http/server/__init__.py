"""The client-facing side."""
