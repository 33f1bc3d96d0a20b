"""Isolates OpenTelemetry's exporters: an HTTP session of their own, and their log messages.

The official exporters of OTLP over HTTP take headers, certificates and more from ``OTEL_*`` variables for every
destination, so that the key for one would go to all. They count a redirect as success, and read an answer of any size.
`OwnSession` sends what one destination needs and nothing else. They tell why an export failed in the log of Python's
``logging`` alone, which would print it to stderr. `ExporterMessages` keeps the last message of each thread instead.

It imports ``requests``, so it is imported only where OTLP is configured.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from io import BytesIO
from typing import Any

# the client that the official exporters use
import requests  # noqa: TID251
from requests.auth import AuthBase  # noqa: TID251

#: bytes of an answer that are read
MOST_READ = 65_536

#: the headers that the exporter itself decides
_OF_EXPORTER = frozenset(("content-type", "content-encoding", "user-agent", "content-length"))

#: the loggers of the exporters and of what they use
_LOGGERS = ("opentelemetry", "urllib3", "requests", "grpc")
#: characters of a message that are kept
_MOST_SAID = 300


class _NoCredentials(AuthBase):
    """Adds nothing: without it, ``requests`` looks for credentials in ``~/.netrc``."""

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        return prepared


class OwnSession(requests.Session):
    """Sends exports with the headers and certificates of one destination.

    Attributes:
        status: the status of the last answer; 0 without one.
        retry_after: its ``Retry-After``; empty without one.
        answer: the first bytes of its body.
        problem: why it was not taken, in words; empty if it was.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        ca_file: str | None = None,
        certificate_file: str | None = None,
        key_file: str | None = None,
    ) -> None:
        """Make it.

        Args:
            headers: the destination's headers.
            ca_file: the authorities of its certificate; None for the system's.
            certificate_file: the certificate that it is shown; None for none.
            key_file: the private key of that; None if it is in the same file.
        """
        super().__init__()
        self.auth = _NoCredentials()
        self.status = 0
        self.retry_after = ""
        self.answer = b""
        self.problem = ""
        self._own = {name.lower(): value for name, value in headers.items()}
        self._trusted = ca_file or True
        self._shown: Any = (certificate_file, key_file) if certificate_file and key_file else certificate_file

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        """Send an export; arguments as in ``requests``.

        The exporters would wait and send it again until its time is over, and say nothing of it meanwhile. The queue in
        front of them does that, and counts it, so they are told of failures that they do not repeat.

        Raises:
            requests.exceptions.RequestException: it was not taken.
        """
        self.status, self.retry_after, self.answer, self.problem = 0, "", b"", ""
        given = options.get("headers") or {}
        kept = {name: value for name, value in given.items() if name.lower() in _OF_EXPORTER}
        options |= {
            "headers": {**kept, **self._own},
            "verify": self._trusted,
            "cert": self._shown,
            "allow_redirects": False,
            "stream": True,
        }
        response = self._twice(method, url, *args, **options)
        if 300 <= response.status_code < 400:
            raise self._failed("it redirects elsewhere")
        if not 200 <= response.status_code < 300:
            raise self._failed(f"it answered {response.status_code}")
        whole = requests.Response()
        whole.status_code, whole.reason = response.status_code, response.reason
        whole.headers = response.headers
        whole.raw = BytesIO(self.answer)
        return whole

    def _twice(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        """Send an export, and again if the receiver may have closed a connection that was idle."""
        try:
            try:
                return self._answered(method, url, *args, **options)
            except (requests.exceptions.SSLError, requests.exceptions.Timeout):
                raise
            except requests.exceptions.ConnectionError:
                return self._answered(method, url, *args, **options)
        except requests.exceptions.SSLError as error:
            raise self._failed("its certificate is not accepted, or it speaks no TLS") from error
        except requests.exceptions.Timeout as error:
            raise self._failed("it does not answer in time") from error
        except requests.exceptions.ConnectionError as error:
            raise self._failed("it cannot be reached") from error

    def _failed(self, problem: str) -> requests.exceptions.RequestException:
        # of a kind that the exporters do not repeat
        self.problem = problem
        return requests.exceptions.RequestException(problem)

    def _answered(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        """Send an export once, and read the beginning of the answer."""
        with super().request(method, url, *args, **options) as response:
            self.status = response.status_code
            self.retry_after = response.headers.get("retry-after", "")
            self.answer = response.raw.read(MOST_READ, decode_content=True) or b""
        return response


class ExporterMessages(logging.Handler):
    """Keeps the last message of the exporters in each thread, and prints none."""

    def __init__(self) -> None:
        """Start without a message."""
        super().__init__(logging.WARNING)
        self._last: dict[int, logging.LogRecord] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._last[threading.get_ident()] = record

    def take(self) -> tuple[str, tuple[Any, ...]]:
        """Return the last message of this thread on one line, and its arguments; then forget it."""
        record = self._last.pop(threading.get_ident(), None)
        if record is None:
            return "", ()
        try:
            said = record.getMessage()
        except Exception:
            said = str(record.msg)
        line = "".join(each if each.isprintable() else " " for each in said[:_MOST_SAID])
        return line, record.args if isinstance(record.args, tuple) else ()


def keep_messages(names: tuple[str, ...] = _LOGGERS) -> ExporterMessages:
    """Return the handler that keeps messages. Idempotent."""
    for name in names:
        logger = logging.getLogger(name)
        logger.propagate = False
        if _MESSAGES not in logger.handlers:
            logger.addHandler(_MESSAGES)
    return _MESSAGES


_MESSAGES = ExporterMessages()
