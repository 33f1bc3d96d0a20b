"""What a gateway holds that nobody uses: the modules it loaded, and the memory that they take."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.end_to_end.process_harness import MEBIBYTE, MeasuredGateway
from tests.end_to_end.twistd_harness import REPOSITORY

NOWHERE = 9
#: newer Pythons take more for the same modules
MOST_BYTES = (110 if sys.version_info >= (3, 14) else 96 if sys.version_info >= (3, 13) else 94) * MEBIBYTE

#: packages that only some gateways need: those with --quickstart, an older schema, PostgreSQL, Redis, discovery,
#: tokens, OTLP, sinks, an export or an import
OPTIONAL = {
    "jwt",
    "twisted_vllm.litellm_import",
    "twisted_vllm.simulator",
    "twisted.web.websocket",
    "wsproto",
    "twisted.names",
    "alembic",
    "mako",
    "psycopg",
    "sqlalchemy.dialects.postgresql",
    "twisted_vllm.ratelimit.redis",
    "txredisapi",
    "opentelemetry",
    "google.protobuf",
    "grpc",
    "requests",
    "twisted_vllm.observability.otlp_exporter",
    "boto3",
    "botocore",
    "twisted_vllm.config.callback_reading",
    "twisted_vllm.observability.delivery.spool",
    "twisted_vllm.observability.sinks",
    "pyarrow",
    "twisted_vllm.usage_export.starting",
    "twisted_vllm.usage_export.process",
}

#: Python runs this before the program
SITE = """
import atexit, sys
atexit.register(lambda: open("modules", "w").write("\\n".join(sys.modules)))
"""


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[str]]]:
    """The resident bytes and the loaded modules of a gateway that was asked only whether it is ready."""
    directory = tmp_path_factory.mktemp("idle")
    (directory / "sitecustomize.py").write_text(SITE)
    path = f"{directory}:{REPOSITORY}"
    # The first start compiles what was not compiled before, and makes the database.
    with MeasuredGateway(directory, NOWHERE, PYTHONPATH=path):
        pass
    with MeasuredGateway(directory, NOWHERE, PYTHONPATH=path) as gateway:
        resident = gateway.memory
        assert gateway.terminate() == 0
    yield resident, (directory / "modules").read_text().splitlines()


def test_an_idle_gateway_takes_at_most_94_mebibytes(idle: tuple[int, list[str]]) -> None:
    resident, modules = idle
    packages = Counter(name.partition(".")[0] for name in modules)
    assert resident <= MOST_BYTES, (
        f"{resident / MEBIBYTE:.1f} MiB are resident. Nearly all of it is imported modules: look for new ones with "
        f"`python -X importtime`. It loads {len(modules)}, most of them from {packages.most_common(12)}"
    )


def test_an_idle_gateway_loads_nothing_that_it_does_not_need(idle: tuple[int, list[str]]) -> None:
    assert sorted(OPTIONAL.intersection(idle[1])) == []
