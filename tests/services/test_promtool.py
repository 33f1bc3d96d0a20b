"""Prometheus' own tool reads what ``GET /metrics`` says (Debian's package prometheus)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import served
from tests.end_to_end.test_ledger_kill import BODY
from tests.end_to_end.twistd_harness import MASTER_KEY, Configured, ask

PROMTOOL = shutil.which("promtool")
SETTINGS = """
passthrough:
  metrics: {key_labels: 10, user_labels: 10, team_labels: 10, litellm_names: true}
"""


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_finds_no_fault_in_the_metrics_of_the_gateway(tmp_path: Path) -> None:
    with served(serve) as server, Configured(tmp_path, server.port, SETTINGS) as gateway:
        for key in (MASTER_KEY, "sk-nobody-0123456789"):
            ask(gateway.port, "/vllm/v1/chat/completions", key, "POST", BODY.decode())
        for reader in (None, MASTER_KEY):
            status, text = ask(gateway.port, "/metrics", reader)
            assert (status, "vllm_passthrough_requests_total{" in text) == (200, True)
            assert PROMTOOL is not None
            checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True)
            faults = [
                line for line in checked.stderr.splitlines() if line.startswith(("vllm_passthrough_", "error", "parse"))
            ]
            assert (faults, "error while linting" in checked.stderr) == ([], False), checked.stderr
