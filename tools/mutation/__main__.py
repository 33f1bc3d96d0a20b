"""``make mutants``: changes one operator or number at a time (cosmic-ray), and lists the changes that no test noticed.

A subject is a few modules and the tests that hold them. It is run in a copy of the checkout. A change that survives
because it makes no difference stands in ``survivors.toml`` with the reason; any other survivor is a failure. Count on
two seconds for a change: ten minutes for prices, an hour for the limits.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from attrs import frozen
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

REPOSITORY = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.toml")
#: seconds for the tests of one change; a change that makes a loop endless counts as noticed
PATIENCE = 60

#: changes that say nothing: annotations (``int | None``), operators that no slip of the hand makes, decorators
LEFT_OUT = (
    r"core/ReplaceBinaryOperator_BitOr_.*",
    r"core/ReplaceBinaryOperator_.*_(Pow|LShift|RShift|BitXor|BitAnd|BitOr|Mod|FloorDiv)$",
    r"core/ReplaceUnaryOperator_(.*_Invert|USub_(Not|UAdd))$",
    r"core/ReplaceComparisonOperator_.*_(Is|IsNot)$",
    r"core/RemoveDecorator$",
)


@frozen
class Subject:
    """What is changed, and what has to notice.

    Attributes:
        modules: files, below the repository.
        tests: files of tests, the quick ones first.
    """

    modules: Sequence[str]
    tests: Sequence[str]


@frozen
class Survivor:
    """A change that no test noticed.

    Attributes:
        module: the file.
        before: the line as it is, without its indentation.
        after: the line as it was changed.
    """

    module: str
    before: str
    after: str


def _within(folder: str, names: str) -> list[str]:
    return [f"{folder}/{name}.py" for name in names.split()]


SUBJECTS: Mapping[str, Subject] = {
    "pricing": Subject(
        [*_within("twisted_vllm", "usage/pricing money")],
        [*_within("tests", "usage/test_pricing test_money")],
    ),
    "limits": Subject(
        [
            *_within("twisted_vllm/ratelimit", "allowance minute_counts periods windows budgets"),
            *_within("twisted_vllm/ratelimit/memory", "counters limiter"),
        ],
        [
            *_within("tests/ratelimit", "test_minute_counts test_allowance test_budget_periods test_local_limiter"),
            *_within("tests/ratelimit", "test_limit_headers test_budget_reconciliation test_limits_stateful"),
        ],
    ),
    "policies": Subject(
        [
            *_within("twisted_vllm/upstreams", "policies bounded_load rendezvous prefix_choice"),
            *_within("twisted_vllm/upstreams", "retry_budget entry_limits"),
        ],
        [
            *_within("tests/upstreams", "test_rendezvous test_retry_budget test_entry_limits"),
            *_within("tests/upstreams", "test_policies test_routing"),
        ],
    ),
}


def survivors_of(subject: Subject, most: int | None = None) -> tuple[int, list[Survivor]]:
    """Change a subject's modules, one place at a time, and return how often, and what its tests did not notice.

    Args:
        subject: what is changed.
        most: the number of changes, which are then chosen by chance, the same each time; None for all.

    Raises:
        subprocess.CalledProcessError: the tests fail without any change, or cosmic-ray does not run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "copy")
        kept = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "__pycache__", ".hypothesis", "docs")
        shutil.copytree(REPOSITORY, copy, ignore=kept)
        test = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:randomly", *subject.tests]
        subprocess.run(test, cwd=copy, check=True, stdout=subprocess.DEVNULL)
        session = Path(scratch, "session.sqlite")
        config = Path(scratch, "config.toml")
        config.write_text(_config(subject, test), "utf-8")
        program = Path(sys.executable).parent
        subprocess.run([program / "cosmic-ray", "init", config, session], cwd=copy, check=True)
        subprocess.run([program / "cr-filter-operators", session, config], cwd=copy, check=True)
        done = _leave_out(session, most)
        subprocess.run([program / "cosmic-ray", "exec", config, session], cwd=copy, check=True)
        return done, list(_read(session))


def _config(subject: Subject, test: Sequence[str]) -> str:
    lines = [
        "[cosmic-ray]",
        f"module-path = {list(subject.modules)}",
        f"timeout = {PATIENCE}.0",
        "excluded-modules = []",
        f'test-command = "{" ".join(test)}"',
        "[cosmic-ray.distributor]",
        'name = "local"',
        "[cosmic-ray.filters.operators-filter]",
        f"exclude-operators = {list(LEFT_OUT)}",
    ]
    return "\n".join(lines) + "\n"


def _leave_out(session: Path, most: int | None) -> int:
    """Skip all changes but so many; return how many are left."""
    with use_db(str(session), WorkDB.Mode.open) as work:
        waiting = sorted(work.pending_work_items, key=lambda item: str(item.mutations))
        if most is not None and most < len(waiting):
            kept = set(Random(most).sample(range(len(waiting)), most))
            skipped = WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output="not in the sample")
            for number, item in enumerate(waiting):
                if number not in kept:
                    work.set_result(item.job_id, skipped)
            return most
        return len(waiting)


def _read(session: Path) -> Iterator[Survivor]:
    with use_db(str(session), WorkDB.Mode.open) as work:
        for item, result in work.completed_work_items:
            if result.test_outcome is not TestOutcome.SURVIVED:
                continue
            changed = [line for line in (result.diff or "").splitlines() if line[:3] not in ("---", "+++")]
            before = " ".join(line[1:].strip() for line in changed if line.startswith("-"))
            after = " ".join(line[1:].strip() for line in changed if line.startswith("+"))
            yield Survivor(str(item.mutations[0].module_path), before, after)


def explained() -> Mapping[Survivor, str]:
    """Return the survivors that make no difference, with the reason of each."""
    told = tomllib.loads(SURVIVORS.read_text("utf-8"))
    return {
        Survivor(module, before, after): reason
        for module, reasons in told.items()
        for reason, changes in reasons.items()
        for before, after in changes
    }


def main() -> int:
    """Run the subjects that are named, or all; return 1 if a change survived that is not explained."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)} [default: all]")
    parser.add_argument("--sample", type=int, metavar="NUMBER", help="so many changes of a subject, chosen by chance")
    options = parser.parse_args()
    if wrong := [name for name in options.subjects if name not in SUBJECTS]:
        parser.error(f"{wrong[0]} is not a subject; there are {', '.join(SUBJECTS)}")
    known = explained()
    failed = False
    for name in options.subjects or SUBJECTS:
        changes, survived = survivors_of(SUBJECTS[name], options.sample)
        new = [each for each in survived if each not in known]
        print(f"{name}: {len(survived)} of {changes} changes survived, {len(new)} of them without an explanation")
        for each in new:
            print(f"  {each.module}\n    - {each.before}\n    + {each.after}")
        failed |= bool(new)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
