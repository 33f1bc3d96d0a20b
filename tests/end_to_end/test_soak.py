"""All abuse at once, beside honest traffic, for as long as ``SOAK_SECONDS`` says.

Two minutes by default; ``SOAK_SECONDS=3600`` for an hour. ``SOAK_KINDS`` is a regular expression: only kinds of abuse
that match are done. ``SOAK_NOISE`` is the honest p99 that is never too much, for a machine that does nothing else.

The honest clients run in a process of their own. Their latency in the first tenth of the time, without abuse, is what
that beside the abuse is compared with.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from tests.end_to_end.process_harness import MEBIBYTE, served, settled
from tests.end_to_end.soak.abuse import KINDS
from tests.end_to_end.soak.server import serve
from tests.end_to_end.soak.world import (
    ABUSERS,
    BUDGET,
    PARALLEL,
    Crowd,
    HonestClient,
    SoakedGateway,
    simulated,
)
from tests.end_to_end.twistd_harness import wait_until

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
CALM = min(SECONDS / 10, 60.0)
CHOSEN = [name for name in KINDS if re.search(os.environ.get("SOAK_KINDS", ""), name)]
#: honest p99 in seconds that is never too much: other tests use the same two cores
NOISE = float(os.environ.get("SOAK_NOISE", "0.25"))
#: bytes by which the process may have grown at the end
GROWTH = 30 * MEBIBYTE
#: bytes of log in a minute, whatever comes: 600 lines of each abuser's key that reached no server and as many that did,
#: 600 of the abusers' address, and the honest ones
LOG_BYTES = (ABUSERS * 1_200 + 600 + 1_200) * 600
#: rows of one key in a minute, beside those of requests that its limits count
FREE_ROWS = 60


def test_nobody_stops_the_gateway_and_nothing_is_left(tmp_path: Path) -> None:
    problems: list[str] = []

    def check(is_so: bool, problem: str) -> None:
        if not is_so:
            problems.append(problem)

    with (
        simulated(tmp_path) as good,
        served(serve) as broken,
        SoakedGateway(tmp_path, good, broken.port) as gateway,
    ):
        honest_key = gateway.administer("/key/generate", key_alias="honest")["key"]
        limits = {"max_parallel_requests": PARALLEL, "max_budget": BUDGET}
        keys = [
            gateway.administer("/key/generate", key_alias=f"abuser-{number}", **limits)["key"]
            for number in range(ABUSERS)
        ]
        calm = HonestClient(gateway.port, honest_key, CALM).result()
        assert not calm.wrong, calm.wrong
        memory, sockets, threads = gateway.memory, gateway.sockets, gateway.threads
        began = time.monotonic()
        beside = HonestClient(gateway.port, honest_key, SECONDS - CALM)
        crowd = Crowd(gateway.port, keys, CHOSEN)
        try:
            while beside.is_busy and gateway.runs:
                time.sleep(0.5)
        except BaseException:
            beside.kill()
            raise
        finally:
            crowd.stop()
        check(gateway.runs, "the gateway has ended")
        honest = beside.result()
        minutes = (time.monotonic() - began) / 60

        bound = max(2 * calm.p99, NOISE)
        check(not honest.wrong, f"honest requests failed: {honest.wrong}")
        check(honest.p99 <= bound, f"honest p99 {honest.p99:.3f} s, and may be {bound:.3f} s")
        for name, failure in sorted(crowd.failures.items()):
            check(False, f"{name}: {failure}")
        check(set(crowd.acts) == set(CHOSEN), f"not done: {set(CHOSEN) - set(crowd.acts)}")

        wait_until(lambda: not gateway.holding())
        found = settled(lambda: gateway.sockets, sockets)
        check(found <= sockets, f"{found - sockets} sockets are left")
        # the reactor's pool makes threads when it first needs them, ten at most
        check(gateway.threads <= threads + 10, f"{gateway.threads - threads} threads are left")
        grown = settled(lambda: gateway.memory, memory + GROWTH) - memory
        check(grown <= GROWTH, f"{grown / MEBIBYTE:.0f} MiB are left")
        files = settled(lambda: len(gateway.spool_files()), 2)
        check(files <= 2, f"files are left in the spool: {gateway.spool_files()}")

        for number, key in enumerate(keys):
            taken = PARALLEL - gateway.places(key)
            check(taken == 0, f"{taken} of the parallel requests of abuser {number} are not given back")
            check(gateway.has_whole_budget(key), f"a part of the budget of abuser {number} is still reserved")
        rows = gateway.rows()
        of_honest = [row for row in rows if row["key_name"] == "honest"]
        check(len(of_honest) == calm.answers + honest.answers, f"{len(of_honest)} rows of honest requests")
        free = [row for row in rows if row["method"] == "GET" and row["key_name"].startswith("abuser")]
        check(len(free) <= FREE_ROWS * ABUSERS * (minutes + 1), f"{len(free)} rows of requests that cost nothing")
        lines = gateway.log_lines
        size = (tmp_path / "gateway.log").stat().st_size
        check(size <= LOG_BYTES * (minutes + 1), f"{size:,} bytes of log in {minutes:.1f} minutes")
        faults = [line for line in lines if "traceback" in line or line.get("error") == "internal_error"]
        check(not faults, f"faults in the log: {faults[:2]}")

        print(
            f"{sum(crowd.acts.values())} acts of {len(crowd.acts)} kinds in {minutes:.1f} minutes: {dict(crowd.acts)}"
        )
        print(f"calm: {calm.p50:.4f} s, p99 {calm.p99:.4f} s, worst {calm.worst:.3f} s")
        print(f"beside abuse: {honest.p50:.4f} s, p99 {honest.p99:.4f} s, worst {honest.worst:.3f} s")
        for took, moment in honest.slowest[:3]:
            print(f"  {took:.3f} s while: {', '.join(crowd.during(moment, took)[:12])}")
        print(f"memory +{grown / MEBIBYTE:.1f} MiB, {len(rows)} rows, {len(lines)} lines of {size / 1e6:.1f} MB")
    assert not problems, "\n".join(problems)
