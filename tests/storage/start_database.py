"""Start a Database in a process of its own, wait for the others, and print what became of it.

Usage: start_database.py URL: a line on standard input starts it, so that several start at one moment.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from tests.storage.asking import answers
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.database import Database


async def start(reactor: Any, url: str) -> None:
    database = Database(reactor, Secret(url))
    print("ready", flush=True)
    sys.stdin.readline()
    database.open()
    print("started" if await answers(database) else "does not answer", flush=True)
    await database.stop()


if __name__ == "__main__":
    react(lambda reactor, url: Deferred.fromCoroutine(start(reactor, url)), sys.argv[1:])
