"""The names of the gateway's metrics."""

#: the prefix of them all
PREFIX = "vllm_passthrough"
