"""The admin API conforms to its OpenAPI document: schemathesis sends a running gateway valid and invalid requests.

It checks every answer against the schema of its status. Valid requests must be accepted, invalid ones refused, other
methods refused with 405, missing and wrong credentials with 401; no answer may be a server error.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.end_to_end.end_to_end_harness import HOST, MASTER_KEY
from tests.end_to_end.process_harness import FULL
from twisted_vllm.config.settings import Limits

#: cases that follow from the schemas; in full runs also random ones, so many for each route
PHASES = "coverage,fuzzing" if FULL else "coverage"
CASES = 200 if FULL else 1
#: real seconds; two idle cores take about 15
SECONDS = 3600 if FULL else 600

#: Some combinations of parameters are refused, which a schema cannot express. So are answers without usage, what is no
#: member, and what the file would refuse.
REFUSES = """
[[operations]]
include-path-regex = "^/usage/(report|top)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "429", "5xx"]

[[operations]]
include-path-regex = "^/(spend/calculate|team/(update|member_delete|.*/members/me))$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "429", "5xx"]

[[operations]]
include-path-regex = "^/model/"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "401", "403", "404", "409", "429", "5xx"]
"""


def conforms(directory: Path, port: int) -> str:
    """Run schemathesis; return its output if it found a fault, else an empty string."""
    (directory / "schemathesis.toml").write_text(REFUSES)
    options = [f"--header=Authorization: Bearer {MASTER_KEY}", "--checks=all", f"--phases={PHASES}"]
    options += [
        f"--max-examples={CASES}",
        "--seed=1",
        "--no-shrink",
        "--continue-on-failure",
        "--output-sanitize=false",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"http://{HOST}:{port}/openapi.json", *options],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return f"{done.stdout}\n{done.stderr}" if done.returncode else ""


@pytest_twisted.ensureDeferred
async def test_the_admin_api_does_what_its_document_says(gateway_to: Any, tmp_path: Path) -> None:
    limits = attrs.evolve(Limits(), max_failed_authentications=None)
    gateway = gateway_to(None, limits=limits)
    complaints = await deferToThread(conforms, tmp_path, gateway.port)
    assert not complaints, complaints
    # it did make keys
    assert (await gateway.ask("GET", "/key/list")).json["total_count"] > 10
