"""Which routing policy finds most prompts in the servers' prefix caches: ``python -m benchmarks.routing``."""
