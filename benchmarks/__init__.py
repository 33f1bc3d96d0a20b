"""What the gateway costs beside what a user has already: the server alone, nginx, vLLM's own router."""
