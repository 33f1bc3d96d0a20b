"""The log: formats, redaction, and where it is written."""
