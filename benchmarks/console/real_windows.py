"""Windows of Chromium."""

from __future__ import annotations

from collections.abc import Sequence

from playwright.sync_api import Browser, BrowserContext, Page, Request, Response

from benchmarks.console.windows import FIRST_PAGE, SIGN_IN, WATCHED, Loaded, Windows

_NOWHERE = "about:blank"
_LINKS = """() => Object.fromEntries([...document.querySelectorAll("#navigation a")].map(
  (link) => [link.textContent.trim(), link.getAttribute("href")]))"""
#: what Chromium says of a page that it has loaded (Paint Timing, Resource Timing: 0 bytes for what it had kept)
_TIMES = """() => {
  const parts = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  return {
    bytes: parts.reduce((sum, part) => sum + part.transferSize, 0),
    paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
  };
}"""
#: milliseconds that scripts have after a page is loaded: they ask for more
_SETTLE = 1_000.0


class RealWindows(Windows):
    """Windows of Chromium, each of a browser context of its own, which has its own connections.

    Args:
        browser: the browser.
        url: where the gateway is.
        key: whose sessions they are.
    """

    def __init__(self, browser: Browser, url: str, key: str) -> None:
        super().__init__()
        self._browser = browser
        self._url = url
        self._key = key
        self._pages: list[Page] = []
        self._open = 0

    def open(self, names: Sequence[str]) -> None:
        """Open one window for each name."""
        while len(self._pages) < len(names):
            self._pages.append(self._signed_in())
        self._open = len(names)
        for page, name in zip(self._pages, names, strict=False):
            page.goto(self._url + WATCHED[name].path)

    def close(self) -> None:
        """Leave all pages."""
        for page in self._pages[: self._open]:
            page.goto(_NOWHERE)
        self._open = 0

    def rest(self, seconds: float) -> None:
        """Wait; what the browser tells is read meanwhile."""
        if not self._pages:
            self._pages.append(self._signed_in())
            self._pages[0].goto(_NOWHERE)
        self._pages[0].wait_for_timeout(seconds * 1000)

    def load(self, path: str) -> Loaded:
        """Load a page in a context that has nothing, and once more."""
        state = self._pages[0].context.storage_state()
        context = self._browser.new_context(storage_state=state)
        try:
            page = context.new_page()
            page.goto(self._url + path)
            page.wait_for_timeout(_SETTLE)
            first = page.evaluate(_TIMES)
            page.goto(_NOWHERE)
            page.goto(self._url + path)
            page.wait_for_timeout(_SETTLE)
            again = page.evaluate(_TIMES)
        finally:
            context.close()
        return Loaded(first["bytes"], again["bytes"], first["paint"], again["paint"])

    def end(self) -> None:
        """Close all windows."""
        for page in self._pages:
            page.context.close()
        self._pages.clear()

    def navigation(self) -> dict[str, str]:
        """Return the links of the navigation."""
        self.open(("Overview",))
        found: dict[str, str] = self._pages[0].evaluate(_LINKS)
        self.close()
        return found

    def _signed_in(self) -> Page:
        context: BrowserContext = self._browser.new_context()
        page = context.new_page()
        page.goto(self._url + SIGN_IN)
        page.get_by_label("Your key").fill(self._key)
        page.get_by_role("button", name="Sign in", exact=True).click()
        page.wait_for_url(self._url + FIRST_PAGE)
        page.goto(_NOWHERE)
        page.on("request", self._asked)
        page.on("response", self._answered)
        page.on("pageerror", lambda error: self.problems.update([f"a script failed: {error}"]))
        return page

    def _asked(self, request: Request) -> None:
        path = request.url.removeprefix(self._url)
        self.asked[path.partition("?")[0]] += 1

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            path = response.url.removeprefix(self._url).partition("?")[0]
            self.problems[f"{path} answered {response.status}"] += 1
