"""Two processes that ask at the same moment get together exactly what is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.services.private_redis import PrivateRedis
from twisted_vllm.ratelimit.allowance import Allowance

PROGRAM = Path(__file__).with_name("limits_burst.py")
EACH = 1000


class Process:
    def __init__(self, redis: PrivateRedis, allowance: Allowance) -> None:
        limits = msgspec.json.encode(allowance).decode()
        command = [sys.executable, str(PROGRAM), str(redis.port), str(EACH), limits]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.say(redis.password)

    def say(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(line + "\n")
        self.popen.stdin.flush()

    def hear(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def end(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            pipe.close()
        self.popen.kill()
        self.popen.wait()


@pytest.mark.parametrize(
    ("allowance", "expected", "code"),
    [
        (Allowance(rpm=500), 500, "rate_limit_exceeded"),
        (Allowance(parallel=70), 70, "rate_limit_exceeded"),
        (Allowance(tpm=4321), 432, "rate_limit_exceeded"),
        (Allowance(model_rpm={"m": 1331}), 1331, "rate_limit_exceeded"),
        (Allowance(model_tpm={"m": 15}), 1, "rate_limit_exceeded"),
        (Allowance(max_budget=12_345, budget_duration="1mo"), 123, "budget_exceeded"),
    ],
    ids=["rpm", "parallel", "tpm", "model_rpm", "model_tpm", "budget"],
)
def test_a_burst_from_two_processes_gets_exactly_what_is_allowed(
    redis: PrivateRedis, allowance: Allowance, expected: int, code: str
) -> None:
    processes = [Process(redis, allowance) for _ in range(2)]
    try:
        assert [process.hear() for process in processes] == ["ready", "ready"]
        for process in processes:
            process.say("go")
        answers = [process.hear().split(" ") for process in processes]
    finally:
        for process in processes:
            process.end()
    assert sum(int(answer[0]) for answer in answers) == expected
    assert {word for answer in answers for word in answer[1:]} <= {code, ""}
