"""Honest traffic at a constant rate, in a process of its own, which nothing but the gateway delays.

    python honest_client.py PORT RATE SECONDS CONNECTIONS SOURCE < REQUESTS

It sends the requests, separated by NUL, in turn. Each counts from the time at which it was due to its last byte: a
stalled gateway cannot hide the wait. SOURCE is the address that it connects from. At the end it writes JSON to standard
output: how many were answered, what was wrong, percentiles in seconds, and the slowest with their time (Unix seconds).
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import deque

#: seconds to wait for the last answers
PATIENCE = 30.0
SLOWEST = 10


def is_whole(answer: bytes) -> bool:
    """Return whether an answer is complete: one with a length, or in chunks."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    head = head.lower()
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)


def is_good(answer: bytes) -> bool:
    """Return whether it is a 200 that ended as it should."""
    return answer.startswith(b"HTTP/1.1 200 ") and (b"text/event-stream" not in answer or b"data: [DONE]" in answer)


def run(
    port: int, rate: float, seconds: float, connections: int, source: str, requests: list[bytes]
) -> dict[str, object]:
    """Send ``rate * seconds`` requests, each as soon as it is due and a connection is free."""
    selector = selectors.DefaultSelector()
    opened = [socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) for _ in range(connections)]
    for each in opened:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(each, selectors.EVENT_READ)
    idle, pieces, due_at = deque(opened), dict.fromkeys(opened, b""), dict.fromkeys(opened, 0.0)
    took: list[tuple[float, float]] = []
    wrong: list[str] = []
    total, sent = int(rate * seconds), 0
    offset = time.time() - time.perf_counter()
    began = time.perf_counter()
    while len(took) < total:
        now = time.perf_counter()
        while sent < min(total, int((now - began) * rate) + 1) and idle:
            free = idle.popleft()
            free.sendall(requests[sent % len(requests)])
            due_at[free] = began + sent / rate
            sent += 1
        if now > began + seconds + PATIENCE or not selector.get_map():
            wrong.append(f"{total - len(took)} answers did not come")
            break
        wait = began + sent / rate - now if sent < total and idle else 0.5
        for key, _ in selector.select(max(wait, 0.0)):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            piece = connection.recv(65_536)
            pieces[connection] += piece
            if piece and not is_whole(pieces[connection]):
                continue
            ended = time.perf_counter()
            if not is_good(pieces[connection]):
                wrong.append(repr(pieces[connection][-300:]))
            took.append((ended - due_at[connection], offset + ended))
            pieces[connection] = b""
            if piece:
                idle.append(connection)
            else:
                selector.unregister(connection)
    for each in opened:
        each.close()
    took.sort(reverse=True)
    latencies = [each for each, _ in took] or [PATIENCE]
    shares = {name: latencies[int(len(latencies) * part)] for name, part in (("p50", 0.5), ("p99", 0.01))}
    return {"answers": len(took), "wrong": wrong[:5], "worst": latencies[0], "slowest": took[:SLOWEST], **shares}


if __name__ == "__main__":
    _, port, rate, seconds, connections, source = sys.argv
    asked = sys.stdin.buffer.read().split(b"\0")
    print(json.dumps(run(int(port), float(rate), float(seconds), int(connections), source, asked)))
