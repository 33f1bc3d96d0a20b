"""Traces of requests: W3C Trace Context on the way, OpenTelemetry spans off it."""
