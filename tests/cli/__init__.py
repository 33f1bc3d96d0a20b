"""The command ``vllm-passthrough``."""
