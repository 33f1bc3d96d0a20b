"""Copies keys and their owners from LiteLLM's database: ``twistd vllm-passthrough --import-litellm``."""
