"""Tells twistd of ``vllm-simulator``."""

from twisted.application.service import ServiceMaker

vllm_simulator = ServiceMaker(
    "vllm-simulator",
    "twisted_vllm.simulator.tap",
    "A stand-in for a vLLM server, for demos, tests and benchmarks.",
    "vllm-simulator",
)
