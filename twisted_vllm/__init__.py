"""A gateway for shared vLLM servers: everything below ``/vllm`` reaches vLLM in vLLM's own format."""
