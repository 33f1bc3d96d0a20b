"""Clients that keep asking through a balancer, and keep what came of each request."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.services.unix_http import UnixConnection

_PATH = "/vllm/v1/chat/completions"
_ERROR_HEADER, _ID_HEADER = "x-vllm-passthrough-error", "x-request-id"
#: what came of a request
WHOLE, BROKEN, REFUSED, WRONG = "whole", "broken", "refused", "wrong"
#: what a balancer answers for a gateway that broke off
_BALANCERS_OWN = frozenset({502, 504})
#: codes of refusals that go away by waiting, and must say for how long
_WAIT = frozenset({"rate_limit_exceeded", "limits_unavailable", "draining"})


@attrs.frozen
class Answer:
    """What came of a request.

    Attributes:
        kind: `WHOLE`, `BROKEN`, `REFUSED` as the documents say, or `WRONG`.
        key: the key's alias.
        id: the request's id; empty where no gateway told one.
        code: the gateway's error code, or what was wrong.
        phase: what happened meanwhile.
    """

    kind: str
    key: str
    id: str
    code: str
    phase: str


@attrs.define
class Key:
    """A key that is used.

    Attributes:
        alias: its name.
        secret: the key.
    """

    alias: str
    secret: str = attrs.field(repr=False)


class Callers:
    """Threads that ask, each over a connection of its own, until they are told to stop.

    Attributes:
        answers: what came of the requests.
        phase: what happens now.
    """

    def __init__(self, socket: Path) -> None:
        self.answers: list[Answer] = []
        self.phase = ""
        self._socket = socket
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Stop all threads at the end of a block."""
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def add(self, key: Key, *, threads: int, tokens: int, stream: bool, pause: float) -> None:
        """Start threads that use a key, so many seconds apart; ten times as many once another phase has begun."""
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "stream": stream}
        encoded = json.dumps(body).encode()
        for _ in range(threads):
            thread = threading.Thread(target=self._call, args=(key, encoded, pause, self.phase))
            self._threads.append(thread)
            thread.start()

    def counts(self, key: str = "", phase: str = "") -> Counter[str]:
        """Count the answers of a key, in a phase, by what came of them."""
        return Counter(each.kind for each in self.of(key, phase))

    def codes(self, key: str) -> set[str]:
        """Return the codes with which a key was refused."""
        return {each.code for each in self.of(key) if each.kind == REFUSED}

    def of(self, key: str = "", phase: str = "") -> Iterable[Answer]:
        """Return the answers of a key, in a phase; empty means all."""
        return [each for each in list(self.answers) if key in ("", each.key) and phase in ("", each.phase)]

    def _call(self, key: Key, body: bytes, pause: float, phase: str) -> None:
        connection = UnixConnection(self._socket)
        while not self._stop.is_set():
            answer = self._ask(connection, key, body)
            self.answers.append(answer)
            if answer.kind in (BROKEN, WRONG):
                connection.close()
            self._stop.wait(pause if phase in ("", self.phase) else 10 * pause)
        connection.close()

    def _ask(self, connection: UnixConnection, key: Key, body: bytes) -> Answer:
        headers = {"Authorization": f"Bearer {key.secret}", "Content-Type": "application/json"}
        phase, id, code = self.phase, "", ""
        try:
            connection.request("POST", _PATH, body, headers)
            response = connection.getresponse()
            id, code = response.headers.get(_ID_HEADER, ""), response.headers.get(_ERROR_HEADER, "")
            content = response.read()
            kind, code = _judge(response, code, content)
        except (OSError, http.client.HTTPException) as error:
            # the balancer itself never leaves: a gateway broke off
            kind, code = BROKEN, type(error).__name__
        return Answer(kind, key.alias, id, code, phase)


def _judge(response: http.client.HTTPResponse, code: str, content: bytes) -> tuple[str, str]:
    if response.status == 200:
        is_stream = response.headers.get_content_type() == "text/event-stream"
        return (BROKEN, "no [DONE]") if is_stream and not content.endswith(b"data: [DONE]\n\n") else (WHOLE, "")
    if response.status in _BALANCERS_OWN and not code:
        return BROKEN, f"the balancer's {response.status}"
    if response.status == 429 and code == "budget_exceeded":
        return REFUSED, code
    if response.status in (429, 503) and code in _WAIT and int(response.headers.get("retry-after", "0")) > 0:
        return REFUSED, code
    return WRONG, f"{response.status} {content[:300]!r}"
