"""The Klein app: virtual keys in LiteLLM's shapes, and health."""
