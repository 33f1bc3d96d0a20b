"""Clients without a browser that ask what the scripts of the pages ask."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from html import unescape
from urllib.parse import urlencode

from benchmarks.console.windows import FIRST_PAGE, SIGN_IN, WATCHED, Loaded, Watched, Windows
from benchmarks.processes import CannotStart

_PATIENCE = 30.0
#: seconds before a stream that ended is asked for again, as browsers do
_RETRY_SECONDS = 3.0
_LINK = re.compile(r'<li><a href="([^"]+)"[^>]*>([^<]+)</a></li>')
_FILE = re.compile(r'(?:src|href)="([^"]*/assets/[^"]+)"')
#: as browsers send them without TLS
_HEADERS = {"Accept-Encoding": "gzip, deflate", "Accept": "text/html,application/json"}


class PlainWindows(Windows):
    """Watchers, each with connections of its own.

    Args:
        port: the gateway's.
        key: whose session they have.

    Raises:
        CannotStart: the key cannot sign in.
    """

    def __init__(self, port: int, key: str) -> None:
        super().__init__()
        self._port = port
        self._cookie = self._sign_in(key)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._streams: list[socket.socket] = []
        self._lock = threading.Lock()

    def open(self, names: Sequence[str]) -> None:
        """Begin one watcher for each name."""
        self._over = threading.Event()
        for name in names:
            page = WATCHED[name]
            self._ask(page.path)
            for path in page.once:
                self._ask(path)
            for path in page.events:
                self._begin(self._listen, path)
            self._begin(self._poll, page)

    def close(self) -> None:
        """End all watchers."""
        self._over.set()
        with self._lock:
            for stream in self._streams:
                try:
                    stream.shutdown(socket.SHUT_RDWR)
                except OSError:  # the gateway ended it
                    continue
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._threads.clear()
        self._streams.clear()

    def rest(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def load(self, path: str) -> Loaded:
        """Ask for a page, its files, and what its scripts ask for."""
        page = next((each for each in WATCHED.values() if each.path == path), Watched(path))
        text, size = self._ask(path)
        more = sum(self._ask(each)[1] for each in (*page.once, *page.polls))
        files = sum(self._ask(unescape(each))[1] for each in _FILE.findall(text))
        again = self._ask(path)[1] + sum(self._ask(each)[1] for each in (*page.once, *page.polls))
        return Loaded(size + more + files, again)

    def navigation(self) -> dict[str, str]:
        """Return the links of the navigation."""
        text, _ = self._ask(FIRST_PAGE, compressed=False)
        return {title.strip(): unescape(path) for path, title in _LINK.findall(text)}

    def _sign_in(self, key: str) -> str:
        connection = self._connection()
        form = urlencode({"key": key})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            connection.request("POST", SIGN_IN, form, _HEADERS | kind)
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        if answer.status != 303:
            raise CannotStart(f"{SIGN_IN} answered {answer.status}")
        return str(answer.headers["Set-Cookie"]).partition(";")[0]

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)

    def _begin(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _poll(self, page: Watched) -> None:
        """Ask for each path in its time, on one connection."""
        connection = self._connection()
        now = time.monotonic()
        due = {path: now + seconds for path, seconds in page.polls.items()}
        while due and not self._over.wait(max(min(due.values()) - time.monotonic(), 0)):
            path = min(due, key=lambda each: due[each])
            due[path] += page.polls[path]
            self._ask(path, connection=connection, poll=True)
        connection.close()

    def _listen(self, path: str) -> None:
        """Read events until the window is closed; those that the gateway ends are asked for again."""
        while not self._over.is_set():
            connection = self._connection()
            try:
                connection.request("GET", path, headers=self._headers() | {"Accept": "text/event-stream"})
                with self._lock:
                    self._streams.append(connection.sock)
                answer = connection.getresponse()
                self._count(path, answer.status)
                if answer.status != 200:
                    return
                while answer.readline():
                    pass
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self._over.is_set():
                    self.problems[f"{path}: {type(error).__name__}"] += 1
            finally:
                connection.close()
            self._over.wait(_RETRY_SECONDS)

    def _ask(
        self,
        path: str,
        *,
        connection: http.client.HTTPConnection | None = None,
        poll: bool = False,
        compressed: bool = True,
    ) -> tuple[str, int]:
        """Return the text of an answer, empty where it is compressed, and the bytes that were received."""
        used = connection or self._connection()
        headers = self._headers() | ({"x-console-poll": "1"} if poll else {})
        try:
            used.request("GET", path, headers=headers if compressed else headers | {"Accept-Encoding": "identity"})
            answer = used.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.problems[f"{path}: {type(error).__name__}"] += 1
            used.close()
            return "", 0
        finally:
            if connection is None:
                used.close()
        self._count(path, answer.status)
        head = sum(len(name) + len(value) + 4 for name, value in answer.getheaders())
        text = "" if answer.headers.get("Content-Encoding") else body.decode("utf-8", "replace")
        return text, len(body) + head

    def _headers(self) -> dict[str, str]:
        return _HEADERS | {"Cookie": self._cookie}

    def _count(self, path: str, status: int) -> None:
        name = path.partition("?")[0]
        with self._lock:
            self.asked[name] += 1
            if status >= 400:
                self.problems[f"{name} answered {status}"] += 1
