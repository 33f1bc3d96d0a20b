"""What the reader of the dashboards chooses among."""

from __future__ import annotations

from benchmarks.dashboards.panels import Variable

INSTANCES = Variable("instance", "Gateway", "vllm_passthrough_info", "The gateway's processes.")
MODELS = Variable(
    "model",
    "Model",
    "vllm_passthrough_requests_total",
    "Names of models, if Prometheus asks with a key that administers; numbers otherwise.",
)
SERVERS = Variable(
    "server",
    "Server",
    "vllm_passthrough_upstream_healthy",
    "Names of vLLM servers, if Prometheus asks with a key that administers; numbers otherwise.",
)
