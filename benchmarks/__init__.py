"""Compares the gateway's cost with the server alone, nginx and vLLM's router."""
