"""Readers of the usage that vLLM reports in its responses."""
