"""Tells twistd of ``vllm-passthrough``."""

from twisted.application.service import ServiceMaker

vllm_passthrough = ServiceMaker(
    "vllm-passthrough",
    "twisted_vllm.app.tap",
    "A gateway for shared vLLM servers: pass-through, virtual keys, permissions, logs.",
    "vllm-passthrough",
)
