"""Request headers that steer vLLM's scheduling and routing, and the gateway's. Only the operator may set them."""

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

#: the gateway's own: names the one server that gets the request
SERVER = b"x-vllm-passthrough-server"

#: the gateway's own: names the model whose servers an act of the operator goes to, such as ``/sleep``
SERVERS_OF_MODEL = b"x-vllm-passthrough-model"

#: chooses one of the teams of a caller with a token
TEAM = b"x-litellm-team-id"

#: headers for the gateway itself, which reach no server
GATEWAYS_HEADERS = frozenset((SERVER, SERVERS_OF_MODEL, TEAM))

#: the headers that a key may be granted
GRANTABLE_HEADERS = OPERATORS_HEADERS | {SERVER}
