"""The console over an AdminApp in memory, asked as a browser asks: with cookies, forms and their proof."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import unescape
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

from treq.testing import StubTreq

from tests.admin.admin_harness import MASTER_KEY, Answer, Gateway
from twisted_vllm.admin.web.mount import ConsoleMount
from twisted_vllm.auth.sessions import SessionSealer
from twisted_vllm.config.console import ConsoleSettings
from twisted_vllm.config.secret import Secret

ORIGIN = "http://gateway:4000"


class ConsoleGateway(Gateway):
    """A gateway with its console; `browser` makes browsers for it."""

    def __init__(
        self,
        *,
        master_key: str | None = MASTER_KEY,
        settings: ConsoleSettings | None = None,
        parts: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        secret = None if master_key is None else Secret(master_key)
        self.sealer = sealer = SessionSealer(secret, self._randbytes)
        super().__init__(
            master_key=master_key,
            sealer=sealer,
            console=lambda app: ConsoleMount(
                context=app.context,
                sealer=lambda: self.sealer,
                settings=settings or ConsoleSettings(),
                origin_of=lambda request: self.origin,
                prefix_of=lambda request: self.prefix,
                parts=parts,
            ),
            **options,
        )
        self.origin = ORIGIN
        self.prefix = ""

    def forget_cookies(self) -> None:
        """Have the client keep no cookies: each browser keeps its own."""
        self._treq = StubTreq(self.recorded)

    def browser(self, key: str | None = None) -> Browser:
        """Return a browser, signed in with a key."""
        found = Browser(self)
        if key is not None:
            answer = found.post("/ui/sign-in", {"key": key})
            assert answer.status == 303, answer.body
        return found


class Browser:
    """Keeps cookies, and sends forms as a browser does.

    Attributes:
        cookies: the cookies by name.
        set_cookies: the last answer's ``Set-Cookie`` headers, as they came.
    """

    def __init__(self, gateway: ConsoleGateway) -> None:
        self.gateway = gateway
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []

    def get(self, path: str, **headers: str) -> Answer:
        """Ask for a page."""
        return self._ask("GET", path, None, headers)

    def post(self, path: str, form: dict[str, Any] | None = None, proof: str | None = None, **headers: str) -> Answer:
        """Send a form, with the proof of the page that is shown; `proof` replaces it."""
        fields = dict(form or {})
        if proof is None and self.cookies:
            proof = self.proof()
        if proof:
            fields["anti_forgery"] = proof
        sent = {"origin": self.gateway.origin, "sec-fetch-site": "same-origin", **headers}
        sent["content-type"] = "application/x-www-form-urlencoded"
        return self._ask("POST", path, urlencode(fields, doseq=True).encode(), sent)

    def proof(self) -> str:
        """Return the word that forms of the session send."""
        found = re.search(rb'<meta name="anti-forgery" content="(\w*)">', self.get("/ui").body)
        assert found is not None
        return found[1].decode()

    def _ask(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Answer:
        sent = {"accept": "text/html", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        self.gateway.forget_cookies()
        answer = self.gateway.call(method, path, key=None, data=data, headers=sent)
        self.set_cookies = self.gateway.set_cookies
        for line in self.set_cookies:
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value
        return answer


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden and data.strip():
            self.found.append(" ".join(data.split()))


def words(answer: Answer) -> str:
    """Return the text that a page shows."""
    parser = _Words()
    parser.feed(answer.body.decode())
    return unescape(" ".join(parser.found))
