"""The request headers that steer vLLM's scheduler and routing, and are the operator's to set."""

from __future__ import annotations

#: vLLM 0.32: its serving layers read these. The adapter headers put another model in the place of the body's on
#: /invocations.
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

#: those among them that put another model in the place of the body's
ADAPTER_HEADERS = frozenset((b"x-amzn-sagemaker-adapter-identifier", b"x-amzn-sagemaker-adapter-alias"))
