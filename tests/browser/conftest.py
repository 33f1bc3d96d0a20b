"""The browser for all tests, and a gateway for each module that does not start its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from benchmarks.chromium import chromium, find_chromium
from tests.browser.browser_harness import WAIT, ConsoleGateway, Visit, gateway_with_simulator


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; tests are skipped, with the reason, where it is not installed."""
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed (Debian's package chromium)")
    # a machine that runs other tests as well may be slow
    expect.set_options(timeout=WAIT)
    with chromium(program) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleGateway]:
    """A gateway in front of one simulator."""
    with gateway_with_simulator(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@pytest.fixture
def visit(browser: Browser, gateway: ConsoleGateway) -> Iterator[Callable[..., Visit]]:
    """Open windows on the gateway's console: ``visit(key)`` signs in; keyword arguments are of Playwright's context."""
    contexts = []

    def open_window(key: str | None = None, **options: object) -> Visit:
        context = browser.new_context(**options)  # type: ignore[arg-type]  # Playwright's own keyword arguments
        contexts.append(context)
        found = Visit(context, gateway.url)
        if key is not None:
            found.sign_in(key)
        return found

    yield open_window
    for context in contexts:
        context.close()
