"""The parts of the telemetry: metrics, traces, sinks, alerts, prompts and answers."""
