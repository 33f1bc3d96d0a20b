"""Sends requests at a constant rate over kept connections, one at a time on each, in a process of its own.

    python constant_rate_client.py PORT RATE SECONDS CONNECTIONS COUNTER < REQUEST

It does as little as possible for a request: it shares the machine with what it measures. COUNTER is a file of 8 bytes
with the number of answers so far. At the end it writes its results as JSON to standard output.
"""

from __future__ import annotations

import json
import mmap
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path

#: seconds to wait for the last answers
PATIENCE = 30.0


def size_of(answer: bytes) -> int:
    """Return the length of an answer, or 0 while its head is incomplete."""
    head, end, _ = answer.partition(b"\r\n\r\n")
    if not end:
        return 0
    found = head.lower().partition(b"content-length: ")[2]
    return len(head) + 4 + int(found.partition(b"\r\n")[0])


def run(
    port: int, rate: int, seconds: float, connections: int, counter: mmap.mmap, request: bytes
) -> dict[str, object]:
    """Send ``rate * seconds`` requests, each as soon as it is due and a connection is free."""
    poll = select.epoll()
    opened: dict[int, socket.socket] = {}
    for _ in range(connections):
        made = socket.create_connection(("127.0.0.1", port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened[made.fileno()] = made
        poll.register(made.fileno(), select.EPOLLIN)
    idle = deque(opened)
    pieces: dict[int, bytes] = {}
    due_at: dict[int, float] = {}
    took: list[float] = []
    wrong: list[str] = []
    total, sent, answers = int(rate * seconds), 0, 0
    began = time.perf_counter()
    while answers < total:
        now = time.perf_counter()
        due = min(total, int((now - began) * rate) + 1)
        while sent < due and idle:
            descriptor = idle.popleft()
            opened[descriptor].sendall(request)
            # latency counts from the time at which it was due: a stalled gateway cannot hide the wait
            due_at[descriptor] = began + sent / rate
            sent += 1
        if now > began + seconds + PATIENCE:
            wrong.append(f"{total - answers} answers did not come")
            break
        wait = began + sent / rate - now if sent < total and idle else 0.5
        for descriptor, _ in poll.poll(max(wait, 0.0)):
            piece = opened[descriptor].recv(65_536)
            received = pieces.pop(descriptor, b"") + piece
            size = size_of(received)
            if not piece or (size and len(received) > size):
                wrong.append(repr(received[:200]))
                poll.unregister(descriptor)
                answers += 1
            elif not size or len(received) < size:
                pieces[descriptor] = received
                continue
            else:
                if not received.startswith(b"HTTP/1.1 200 "):
                    wrong.append(repr(received[:200]))
                took.append(time.perf_counter() - due_at[descriptor])
                answers += 1
                idle.append(descriptor)
            counter[:8] = answers.to_bytes(8, "little")
    elapsed = time.perf_counter() - began
    for each in opened.values():
        each.close()
    took.sort()
    share = {name: took[int(len(took) * part)] for name, part in (("median", 0.5), ("p99", 0.99), ("p999", 0.999))}
    return {"answers": answers, "seconds": elapsed, "wrong": wrong[:5], **share}


if __name__ == "__main__":
    _, port, rate, seconds, connections, name = sys.argv
    with Path(name).open("r+b") as file, mmap.mmap(file.fileno(), 8) as counter:
        told = run(int(port), int(rate), float(seconds), int(connections), counter, sys.stdin.buffer.read())
    print(json.dumps(told))
