"""A real gateway in front of the simulator, and Debian's Chromium that looks at its console."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, ConsoleMessage, Page

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import Foreground, ask, command, environment, wait_until

#: of the gateways that the tests start
MASTER_KEY = "sk-browser-tests-0123456789"
#: milliseconds that a page has to show what a test waits for
WAIT = 30_000
#: WCAG 2.1 A and AA, and what axe calls best practice
_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], "resultTypes": ["violations"]}


#: JavaScript: whether no part of a page is being replaced or fades
_IS_STILL = """!document.querySelector(".htmx-request, .htmx-swapping, .htmx-settling")
  && document.getAnimations().every((each) => each.playState !== "running")"""


class Simulator:
    """``twistd vllm-simulator`` in a process of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        listen = f"--listen=tcp:{self.port}:interface=127.0.0.1"
        self._process = subprocess.Popen(
            command("-n", "--pidfile=", "vllm-simulator", listen, *options),
            cwd=directory,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        def answers() -> bool:
            try:
                return ask(self.port, "/health")[0] == 200
            except OSError:
                return False

        wait_until(answers)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class ConsoleGateway(Foreground):
    """A gateway with a configuration file, whose console the browser sees at `url`."""

    def __init__(self, directory: Path, settings: str, *arguments: str, port: int = 0, **variables: str) -> None:
        (directory / "gateway.yaml").write_text(settings)
        (directory / "log").mkdir(exist_ok=True)
        super().__init__(
            directory,
            port or free_port(),
            "--config=gateway.yaml",
            *arguments,
            LITELLM_MASTER_KEY=MASTER_KEY,
            **variables,
        )
        self.directory = directory

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def api(self, method: str, path: str, body: object = None, key: str = MASTER_KEY) -> Any:
        """Ask the admin API or vLLM; return what it answers, which must be a success."""
        status, text = ask(self.port, path, key, method, None if body is None else json.dumps(body))
        assert status == 200, (method, path, status, text)
        return json.loads(text) if text else None

    def chat(self, key: str = MASTER_KEY, model: str = "simulated-model", **fields: object) -> Any:
        """Have a model answer once."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, **fields}
        return self.api("POST", "/vllm/v1/chat/completions", body, key)


def settings_for(*servers: str, extra: str = "", general: str = "", passthrough: str = "") -> str:
    """Return a configuration in which these servers serve ``simulated-model``.

    Args:
        servers: their addresses.
        extra: further sections.
        general: further members of ``general_settings``, each with a comma before it.
        passthrough: further members of ``passthrough``.
    """
    entries = "".join(
        f"  - {{model_name: simulated-model, litellm_params: {{model: hosted_vllm/simulated-model, api_base: {url}, "
        "input_cost_per_token: 0.000001, output_cost_per_token: 0.000002}}\n"
        for url in servers
    )
    return (
        f"model_list:\n{entries}"
        f"passthrough: {{log: {{file: log/gateway.log, format: json}}, {passthrough}}}\n"
        f"general_settings: {{database_url: 'sqlite:///gateway.sqlite3'{general}}}\n"
        f"{extra}"
    )


@contextmanager
def gateway_with_simulator(
    directory: Path,
    *arguments: str,
    simulators: int = 1,
    options: tuple[str, ...] = (),
    extra: str = "",
    general: str = "",
    passthrough: str = "",
    port: int = 0,
    **more: str,
) -> Iterator[ConsoleGateway]:
    """Start simulators and a gateway in front of them."""
    servers = [Simulator(directory, "--model=simulated-model", *options) for _ in range(simulators)]
    try:
        for each in servers:
            each.wait()
        with ConsoleGateway(
            directory,
            settings_for(*(each.url for each in servers), extra=extra, general=general, passthrough=passthrough),
            *arguments,
            port=port,
            **more,
        ) as found:
            yield found
    finally:
        for each in servers:
            each.stop()


class Visit:
    """A window of the browser in which somebody uses the console.

    Attributes:
        page: Playwright's page.
        problems: what the browser complained about: errors on its console, scripts that failed, answers that were not
            found, and refusals by the content security policy.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.problems: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        place = message.location["url"]
        # what it says about pages of a provider is the provider's
        if message.type in ("error", "warning") and (not place or place.startswith(self.url)):
            self.problems.append(f"{message.text} ({place})")

    def open(self, path: str) -> Page:
        """Open a page of the console, and wait until it is there."""
        self.page.goto(self.url + path)
        return self.page

    def sign_in(self, key: str) -> Page:
        """Sign in with a key."""
        self.open("/ui/sign-in")
        self.page.get_by_label("Your key").fill(key)
        self.page.get_by_role("button", name="Sign in", exact=True).click()
        self.page.wait_for_url(self.url + "/ui")
        return self.page

    def assert_clean(self) -> None:
        """Assert that axe finds nothing on the page, and that the browser had nothing to complain about."""
        # while a part of the page is replaced, it is half transparent
        self.settle()
        found = Axe().run(self.page, options=_RULES)
        assert found.violations_count == 0, found.generate_report()
        assert self.problems == [], self.problems

    def settle(self) -> None:
        """Wait until the page asks for no part of itself: who leaves earlier breaks that off, which htmx reports."""
        wait_until(lambda: self.page.evaluate(_IS_STILL))


def fits_the_width(page: Page) -> bool:
    """Return whether nothing of a page lies beside the window."""
    found: bool = page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    return found
