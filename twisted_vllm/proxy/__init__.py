"""The pass-through: everything below /vllm."""
