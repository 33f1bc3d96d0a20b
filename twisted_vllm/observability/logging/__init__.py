"""The log: lines, sinks, redaction."""
