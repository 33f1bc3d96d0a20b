"""The side that faces vLLM servers."""
