"""The pass-through: everything under /vllm."""
