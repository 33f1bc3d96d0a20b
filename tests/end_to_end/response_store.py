"""A stand-in for a vLLM that stores responses, as 0.32 does with ``VLLM_ENABLE_RESPONSES_API_STORE=1``."""

from __future__ import annotations

import json
from typing import Any

from tests.end_to_end.end_to_end_harness import StandIn, Wire, lower, parse_head
from tests.end_to_end.messages import EVENT_STREAM, chunk

USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


class ResponseStore:
    """A server with a store of its own.

    Attributes:
        stand_in: its sockets.
        requests: the method and path of each request that came.
        bodies: the bodies, as vLLM reads them.
        responses: the stored responses, by their ids.
        mute: whether it answers nothing.
    """

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.requests: list[tuple[str, str]] = []
        self.heads: list[dict[bytes, bytes]] = []
        self.bodies: list[dict[str, Any]] = []
        self.responses: dict[str, dict[str, Any]] = {}
        self.mute = False
        self._read: dict[Wire, int] = {}
        stand_in.respond = self._respond

    @property
    def port(self) -> int:
        return self.stand_in.port

    def count(self, method: str) -> int:
        """Return how many requests with this method came."""
        return sum(each == method for each, _ in self.requests)

    def finish(self, response_id: str, status: str = "completed", usage: dict[str, int] | None = USAGE) -> None:
        """End a response that is generated in the background."""
        self.responses[response_id].update(status=status, usage=usage)

    def _respond(self, wire: Wire) -> None:
        while True:
            rest = wire.received[self._read.get(wire, 0) :]
            head, end, body = rest.partition(b"\r\n\r\n")
            line, pairs = parse_head(head)
            length = int(lower(pairs).get(b"content-length", b"0")) if end else 0
            if not end or len(body) < length:
                return
            self._read[wire] = self._read.get(wire, 0) + len(head) + 4 + length
            method, target, _ = line.decode().split(" ")
            self.requests.append((method, target))
            self.heads.append(lower(pairs))
            if not self.mute:
                self._answer(wire, method, target.partition("?")[0], body[:length])

    def _answer(self, wire: Wire, method: str, path: str, raw: bytes) -> None:
        if path == "/v1/responses" and method == "POST":
            self._create(wire, raw)
            return
        response_id = path.removeprefix("/v1/responses/").removesuffix("/cancel")
        response = self.responses.get(response_id)
        if response is None:
            wire.send(_whole(404, _not_found(response_id)))
            return
        if path.endswith("/cancel"):
            response["status"] = "cancelled"
        wire.send(_whole(200, response))

    def _create(self, wire: Wire, raw: bytes) -> None:
        body = json.loads(raw)
        self.bodies.append(body)
        previous = body.get("previous_response_id")
        if previous is not None and previous not in self.responses:
            wire.send(_whole(404, _not_found(previous)))
            return
        if body.get("refuse"):
            wire.send(_whole(400, {"error": {"message": "no"}}))
            return
        response_id = body.get("request_id", f"resp_{self.port:08x}{len(self.bodies):08x}")
        response = {"id": response_id, "status": "completed", "output": [], "usage": USAGE}
        if body.get("background"):
            response |= {"status": "queued", "usage": None}
        self.responses[response_id] = response
        if body.get("stream"):
            events = b"".join(_event("response.output_text.delta", delta="a") for _ in range(5))
            wire.send(EVENT_STREAM + chunk(_event("response.created", response=response) + events))
        else:
            wire.send(_whole(200, response))


def _not_found(response_id: str) -> dict[str, Any]:
    message = f"Response with id '{response_id}' not found."
    return {"error": {"message": message, "type": "invalid_request_error", "param": "response_id", "code": 404}}


def _event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def _whole(status: int, value: object) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body
