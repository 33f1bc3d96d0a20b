"""Sinks: where log lines and finished requests go beside the log."""
