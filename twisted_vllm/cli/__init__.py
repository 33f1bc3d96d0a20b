"""The command ``vllm-passthrough``: the gateway, and what people do with it from a terminal."""
