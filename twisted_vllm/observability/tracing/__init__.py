"""Traces of requests (OpenTelemetry): their place in a trace, their spans, what the spans say, where they go."""
