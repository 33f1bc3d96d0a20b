"""A real OpenID provider for the tests, in a process of its own, and a person who uses it with a browser or without."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import unescape
from http.cookiejar import CookieJar
from importlib.util import find_spec
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, Request, build_opener

import attrs

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import REPOSITORY

#: who knows which password, and is of which groups
PASSWORDS = {
    "ada": "ada-has-a-password",
    "grace": "grace-has-one-too",
    "kay": "kay-agrees-to-nothing",
    "eve": "eve-is-a-stranger",
}
GROUPS = {"gateway-admins": ["ada"], "physics": ["grace", "kay"]}
CLIENT, SECRET = "console", "a-secret:of%the+client"
PUBLIC_CLIENT = "console-without-secret"


def is_installed() -> bool:
    """Return whether there is a provider to run."""
    return find_spec("canaille") is not None


@attrs.frozen
class PrivateProvider:
    """The provider.

    Attributes:
        issuer: its issuer. It is at ``localhost``, another site than ``127.0.0.1``.
    """

    issuer: str

    def settings(self, *, secret: str | None = SECRET, **more: Any) -> dict[str, Any]:
        """Return ``passthrough.console.oidc`` for it."""
        client = {"client_id": PUBLIC_CLIENT} if secret is None else {"client_id": CLIENT, "client_secret": secret}
        claims = {
            "user_id_jwt_field": "sub",
            "user_id_upsert": True,
            "team_ids_jwt_field": "groups",
            "user_roles_jwt_field": "groups",
            "user_allowed_roles": [*GROUPS],
            "roles_jwt_field": "groups",
            "role_mappings": [{"role": "gateway-admins", "internal_role": "proxy_admin"}],
        }
        scopes = ["profile", "email", "groups"]
        found = {"issuer": self.issuer, "name": "Canaille", **client, "scopes": scopes, "claims": claims}
        return {**found, **more}


@contextmanager
def private_provider(origins: Sequence[str]) -> Iterator[PrivateProvider]:
    """Run a provider that knows the gateways at these origins."""
    port = free_port()
    addresses = {
        "redirect_uris": [f"{origin}/ui/oidc/callback" for origin in origins],
        "post_logout_redirect_uris": [f"{origin}/ui/oidc/signed-out" for origin in origins],
    }
    confidential = {
        "client_id": CLIENT,
        "client_secret": SECRET,
        "client_name": "The gateway",
        "client_uri": "https://gateway.example.com",
        "token_endpoint_auth_method": "client_secret_basic",
        **addresses,
    }
    public = {
        "client_id": PUBLIC_CLIENT,
        "client_name": "The gateway, without a secret",
        # a domain that the provider trusts: it asks for no consent
        "client_uri": "http://127.0.0.1",
        "token_endpoint_auth_method": "none",
        **addresses,
    }
    told = {
        "host": "localhost",
        "port": port,
        "users": PASSWORDS,
        "groups": GROUPS,
        "clients": [confidential, public],
    }
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "COVERAGE_PROCESS_CONFIG") if name in os.environ
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.services.canaille_server"],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(told))
        process.stdin.close()
        assert process.stdout.readline() == "ready\n"
        yield PrivateProvider(f"http://localhost:{port}")
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@attrs.frozen
class Shown:
    """A page that a person sees.

    Attributes:
        url: where it is.
        status: its status.
        text: its source.
    """

    url: str
    status: int
    text: str

    @property
    def target(self) -> str:
        """Where the page leads on by itself."""
        found = re.search(r'<meta http-equiv="refresh" content="0; url=([^"]*)">', self.text)
        assert found is not None, self.text
        return urljoin(self.url, unescape(found[1]))


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


class Person:
    """Somebody with a browser that has no scripts: it keeps cookies, follows redirects and sends forms.

    Attributes:
        seen: the addresses to which it was led.
        moved: returns the address to which a balancer sends a request.
    """

    def __init__(self) -> None:
        self.cookies = CookieJar()
        self.moved: Callable[[str], str] = str
        self.seen: list[str] = []
        self._opener = build_opener(HTTPCookieProcessor(self.cookies), _NoRedirect())

    def open(self, url: str, form: Mapping[str, str] | None = None) -> Shown:
        """Open a page, or send a form, and follow where it leads; not to another site, which `sign_in` does."""
        url, data = self.moved(url), None if form is None else urlencode(form).encode()
        self.seen.append(url)
        try:
            answer: Any = self._opener.open(Request(url, data, {"Accept": "text/html"}), timeout=30)
        except HTTPError as error:
            answer = error
        with answer:
            if answer.status in (301, 302, 303):
                return self.open(urljoin(url, answer.headers["location"]))
            return Shown(url, answer.status, answer.read().decode())

    def send(self, page: Shown, **fields: str) -> Shown:
        """Send the form of a page of the provider's."""
        found = re.search(r'name="csrf_token" value="([^"]*)"', page.text)
        assert found is not None, page.text
        return self.open(page.url, {"csrf_token": found[1], **fields})

    def enter(self, page: Shown, name: str) -> Shown:
        """Say who one is at the provider."""
        page = self.send(page, login=name, remember="y", answer="signin")
        return self.send(page, password=PASSWORDS[name])

    def sign_in(self, gateway: str, name: str, answer: str = "accept") -> Shown:
        """Sign in at a gateway by the provider; return the gateway's page that follows."""
        page = self.open(f"{gateway}/ui/oidc/sign-in?next=/ui")
        if page.url.endswith("/login"):
            page = self.enter(page, name)
        return self.send(page, answer=answer) if "/oauth/authorize" in page.url else page

    @property
    def callback(self) -> str:
        """The address to which the provider sent it last."""
        return [url for url in self.seen if url.partition("?")[0].endswith("/ui/oidc/callback")][-1]

    def sign_out(self, gateway: str) -> Shown:
        """Sign out at a gateway; return the page that leads to the provider."""
        shown = self.open(f"{gateway}/ui")
        word = re.search(r'name="anti_forgery" value="(\w+)"', shown.text)
        assert word is not None, shown.text
        return self.open(f"{gateway}/ui/sign-out", {"anti_forgery": word[1]})
