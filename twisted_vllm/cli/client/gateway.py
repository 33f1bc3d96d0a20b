"""Requests to a gateway's admin API, and what is said where one fails."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import attrs
import click

from twisted_vllm.config.problems import FILE_SUFFIX

#: where a gateway listens unless somebody says otherwise
DEFAULT_URL = "http://127.0.0.1:4000"
#: bytes of an answer; a page of lists has a few hundred thousand
MAX_ANSWER = 268_435_456

#: exit statuses
REFUSED, UNREACHABLE = 1, 3

#: variables that hold the key
_KEY_VARIABLES = ("VLLM_PASSTHROUGH_KEY", "LITELLM_MASTER_KEY")

_WHAT_TO_DO = {
    401: "is it the key of this gateway? VLLM_PASSTHROUGH_KEY or --key-file names it",
    403: "this needs another key: the master key, or one of an administrator or owner",
    429: "wait, and ask again",
}
#: codes of answers that say it all
_CLEAR = frozenset(("not_found", "conflict", "invalid_request", "model_not_found"))


class Failed(click.ClickException):
    """The gateway refused, or there was no way to it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        #: click's name for the exit status
        self.exit_code = status  # type: ignore[misc]  # click declares it for the class, and reads it of the instance


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@attrs.frozen
class Gateway:
    """A gateway and the key with which it is asked.

    Attributes:
        url: its address, or ``unix:PATH``.
        key: the key; empty for what needs none.
        ca_file: certificates of authorities to trust in place of the system's; None for the system's.
        timeout: seconds that each wait for the gateway may last.
        verified: whether its certificate is checked.
    """

    url: str
    key: str = attrs.field(repr=False)
    ca_file: str | None = None
    timeout: float = 30.0
    verified: bool = True

    def get(self, path: str, **query: object) -> Any:
        """Return the answer to a GET. A parameter that is None or empty is left out."""
        return self.call("GET", path, query)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to a POST of JSON."""
        return self.call("POST", path, body=body)

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """Send one request, and return the value of its answer.

        Raises:
            Failed: the gateway refused, or nothing that is one answered.
        """
        data = self.text(method, path, query, body)
        try:
            return json.loads(data)
        except ValueError:
            raise Failed(f"{self.url} does not answer as a gateway does: is the address right?", UNREACHABLE) from None

    def text(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Send one request, and return its answer as it came.

        Raises:
            Failed: see `call`.
        """
        wanted = {name: _written(value) for name, value in (query or {}).items() if value not in (None, "", False)}
        target = quote(path, safe="/:") + (f"?{urlencode(wanted)}" if wanted else "")
        headers = {"Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        sent = None if body is None else json.dumps(body).encode()
        if sent is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.request(method, target, sent, headers)
            answer = connection.getresponse()
            data = answer.read(MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            raise Failed(self._why_not(error), UNREACHABLE) from None
        finally:
            connection.close()
        if len(data) > MAX_ANSWER:
            raise Failed(f"the answer of {path} is larger than {MAX_ANSWER} bytes: ask for less of it", REFUSED)
        if answer.status != 200:
            raise _refusal(answer.status, path, data)
        return data

    def _connection(self) -> http.client.HTTPConnection:
        if self.url.startswith("unix:"):
            return _UnixConnection(self.url.removeprefix("unix:"), self.timeout)
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
            raise click.UsageError(
                f"{_without_key(self.url)!r} is not the address of a gateway: write --url http://HOST:PORT, "
                "https://HOST:PORT or unix:PATH"
            )
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self.timeout)
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise click.UsageError(f"--ca-file {self.ca_file}: {error.strerror or 'it holds no certificate'}") from None
        if not self.verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(host, port, timeout=self.timeout, context=context)

    def _why_not(self, error: Exception) -> str:
        at = _without_key(self.url)
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            return f"nothing listens at {at}: is the gateway running there? --url or VLLM_PASSTHROUGH_URL names another"
        if isinstance(error, TimeoutError):
            return f"{at} did not answer within {self.timeout:g} s: --timeout waits longer"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate of {at} is not trusted: {error.verify_message} (--ca-file names its authority)"
        if isinstance(error, ssl.SSLError):
            return f"{at} does not speak TLS: is it http://?"
        if isinstance(error, socket.gaierror):
            return f"the name in {at} is not known: {error.strerror}"
        if isinstance(error, http.client.HTTPException):
            return f"{at} does not answer in HTTP: is it https://?"
        return f"{at} cannot be reached: {getattr(error, 'strerror', None) or error}"


def _written(value: object) -> str:
    return "true" if value is True else str(value)


def _without_key(url: str) -> str:
    """Return an address without a name and password in it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _refusal(status: int, path: str, data: bytes) -> Failed:
    try:
        error = json.loads(data)["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, LookupError, TypeError, AttributeError):
        if status == 404:
            return Failed(f"it has no {path}: it is no gateway, or an older one", UNREACHABLE)
        if 300 <= status < 400:
            return Failed(f"it sends us elsewhere (status {status}): name that address with --url", UNREACHABLE)
        return Failed(f"it answers with status {status}, and not as a gateway does", UNREACHABLE)
    if code in _CLEAR or status not in _WHAT_TO_DO:
        return Failed(f"{message} (status {status})", REFUSED)
    return Failed(f"{message} (status {status}: {_WHAT_TO_DO[status]})", REFUSED)


def find_key(file: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the key to send: of a file (``-`` is standard input), or of a variable, or of the file that one names.

    Raises:
        UsageError: there is none, or the file cannot be read.
    """
    if file is not None:
        return read_key(file, "--key-file")
    for name in _KEY_VARIABLES:
        if environ.get(name):
            return _checked(environ[name])
        if environ.get(name + FILE_SUFFIX):
            return read_key(environ[name + FILE_SUFFIX], name + FILE_SUFFIX)
    return _checked("")


def read_key(file: str, option: str) -> str:
    """Return the key that a file holds; ``-`` is standard input.

    Raises:
        UsageError: the file cannot be read, or holds no key; the message has the option that names it.
    """
    try:
        text = sys.stdin.read(10_000) if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise click.UsageError(f"{option} {file}: {reason}") from None
    return _checked(text.strip())


def _checked(key: str) -> str:
    if not key:
        raise click.UsageError("no key: set VLLM_PASSTHROUGH_KEY, or name a file that holds it with --key-file")
    if not key.isprintable() or not key.isascii() or " " in key:
        raise click.UsageError("what is given as the key is none: it has spaces, line ends or characters beyond ASCII")
    return key
