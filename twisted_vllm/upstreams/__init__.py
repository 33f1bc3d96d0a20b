"""vLLM servers: routing, concurrency limits and queues."""
