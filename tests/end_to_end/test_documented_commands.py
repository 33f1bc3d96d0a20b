"""The shell blocks of the documents are run: in their order, with the values that earlier ones printed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from docs.site.markdown import REPOSITORY, Block, blocks, documents
from tests.end_to_end.documented_commands import Reader, Servers
from tests.end_to_end.twistd_harness import ask, command, environment, wait_until

#: blocks that another test runs, each with its own values
ELSEWHERE = {"docs/connect.md": "tests/end_to_end/test_connect_snippets.py"}
#: how many blocks of a document need what is not here; the comment above each of them says what. A block that is not
#: run is a promise that nobody keeps: run it if you can
NOT_RUN = {
    "CONTRIBUTING.md": 2,
    "README.md": 2,
    "docs/alerts.md": 1,
    "docs/comparison.md": 1,
    "docs/containers.md": 13,
    "docs/export.md": 1,
    "docs/jwt.md": 1,
    "docs/kubernetes.md": 5,
    "docs/migrate-from-litellm.md": 1,
    "docs/observability.md": 2,
    "docs/operations.md": 3,
    "docs/otlp.md": 1,
    "docs/performance.md": 7,
    "docs/recipes.md": 2,
    "docs/routing.md": 1,
    "docs/releasing.md": 1,
    "docs/scaling.md": 2,
    "docs/systemd.md": 4,
    "docs/tracing.md": 1,
    "docs/tutorial.md": 1,
    "docs/upgrade.md": 2,
}

#: pages that begin with how to start a gateway
START_THEMSELVES = {"README.md"}


def shell_blocks(path: Path) -> list[Block]:
    return [block for block in blocks(path) if block.language in ("sh", "console", "bash", "shell")]


PAGES = {
    name: found
    for path in documents()
    if (name := str(path.relative_to(REPOSITORY))) not in ELSEWHERE and (found := shell_blocks(path))
}


def is_run(block: Block) -> bool:
    return not any(mark.startswith("not run") for mark in block.marks)


def is_possible(block: Block) -> bool:
    return all(shutil.which(mark.removeprefix("needs: ")) for mark in block.marks if mark.startswith("needs: "))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Two simulators, as the documents' servers."""
    ports = free_port(), free_port()
    models = [f"--model={name}" for name in ("simulated-model", "qwen", "Qwen/Qwen2.5-7B-Instruct")]
    processes = [
        subprocess.Popen(
            command("-n", "--pidfile=", "vllm-simulator", f"--listen=tcp:{port}:interface=127.0.0.1", *models),
            cwd=tmp_path_factory.mktemp("simulator"),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for port in ports
    ]

    def answers(port: int) -> bool:
        try:
            return ask(port, "/health")[0] == 200
        except OSError:
            return False

    try:
        for port in ports:
            wait_until(lambda port=port: answers(port))  # type: ignore[misc]  # mypy infers no lambda with defaults
        yield Servers(ports)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("name", [name for name, found in PAGES.items() if any(map(is_run, found))])
def test_the_commands_of_a_document_do_what_it_says(name: str, servers: Servers, tmp_path: Path) -> None:
    reader = Reader(tmp_path, servers)
    try:
        if name not in START_THEMSELVES:
            reader.start_gateway(blocks(REPOSITORY / name))
        for block in PAGES[name]:
            if is_run(block) and is_possible(block):
                reader.do(block)
    finally:
        reader.close()
    assert reader.ran


def test_no_other_blocks_are_left_out_than_those_that_are_known() -> None:
    left_out = {name: sum(not is_run(block) for block in found) for name, found in PAGES.items()}
    assert {name: count for name, count in left_out.items() if count} == NOT_RUN


def test_each_block_that_is_not_run_says_why() -> None:
    marks = [mark for found in PAGES.values() for block in found for mark in block.marks]
    kinds = ("not run: ", "first: ", "answers: ", "needs: ")
    assert [mark for mark in marks if not mark.startswith(kinds)] == []
