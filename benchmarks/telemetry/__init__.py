"""What metrics, traces, sinks and kept prompts cost the gateway."""
