"""Request headers that steer vLLM's scheduling and routing. Only the operator may set them."""

from __future__ import annotations

#: the headers that vLLM 0.32 reads
OPERATORS_HEADERS = frozenset(
    (
        b"x-vllm-priority",
        b"x-data-parallel-rank",
        b"x-session-id",
        b"endpoint-load-metrics-format",
        b"x-amzn-sagemaker-session-id",
        b"x-amzn-sagemaker-closed-session-id",
        b"x-amzn-sagemaker-adapter-identifier",
        b"x-amzn-sagemaker-adapter-alias",
    )
)

#: names the adapter that serves a request to /invocations
ADAPTER = b"x-amzn-sagemaker-adapter-identifier"

#: those among them that replace the body's model on /invocations
ADAPTER_HEADERS = frozenset((ADAPTER, b"x-amzn-sagemaker-adapter-alias"))
