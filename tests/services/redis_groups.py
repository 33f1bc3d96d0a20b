"""Groups of private Redis servers: a master with a replica and three Sentinels, and a Cluster."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from tests.services.private_redis import START_SECONDS, PrivateRedis
from twisted_vllm.config.redis_places import RedisCluster, RedisSentinels
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import RedisServer

SERVICE = "limits"
#: milliseconds until a Sentinel takes a server for dead
DOWN_AFTER = 500


class Replicated:
    """A master with a replica, and three Sentinels with a password of their own."""

    def __init__(self, program: str) -> None:
        password = f"p:/@%{secrets.token_hex(8)}"
        # It is a replica when it comes back.
        lines = (f'masterauth "{password}"', "repl-diskless-sync-delay 0")
        self.master = PrivateRedis(program, lines, password=password)
        self.replica = PrivateRedis(program, (*lines, f"replicaof 127.0.0.1 {self.master.port}"), password=password)
        self.sentinels = [
            PrivateRedis(program, self._watching("look"), database=0, password="look", arguments=["--sentinel"])
            for _ in range(3)
        ]

    def _watching(self, password: str) -> tuple[str, ...]:
        return (
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2",
            f'sentinel auth-pass {SERVICE} "{self.master.password}"',
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}",
            f"sentinel failover-timeout {SERVICE} 4000",
            f"sentinel sentinel-pass {password}",
        )

    @property
    def place(self) -> RedisSentinels:
        """Where it is, as the gateway is told."""
        return RedisSentinels(
            tuple(RedisServer("127.0.0.1", each.port, password=Secret(each.password)) for each in self.sentinels),
            SERVICE,
            self.master.server,
        )

    def start(self) -> None:
        """Start all, and wait until every Sentinel knows the others and the replica."""
        for each in (self.master, self.replica, *self.sentinels):
            each.start()
        wait_until(lambda: all(self._is_known(each) for each in self.sentinels))
        wait_until(lambda: b"master_link_status:up" in self.replica.command("INFO", "replication"))

    def named(self) -> int:
        """Return the port of the master, as the first Sentinel names it."""
        answer = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(answer.split(b"\r\n")[-1])

    def _is_known(self, sentinel: PrivateRedis) -> bool:
        words = sentinel.command("SENTINEL", "MASTER", SERVICE).decode().split("\r\n")
        told = dict(zip(words[2::4], words[4::4], strict=False))
        return told["num-slaves"] == "1" and told["num-other-sentinels"] == "2" and told["flags"] == "master"

    def remove(self) -> None:
        """Stop all and remove their files."""
        for each in (*self.sentinels, self.replica, self.master):
            each.remove()


class Cluster:
    """Three masters, each with a third of the slots, and a replica of each."""

    def __init__(self, program: str) -> None:
        password = f"p:/@%{secrets.token_hex(8)}"
        lines = (
            *("cluster-enabled yes", "cluster-node-timeout 1000", "cluster-replica-validity-factor 0"),
            *(f'masterauth "{password}"', "repl-diskless-sync-delay 0"),
        )
        self.nodes = [PrivateRedis(program, lines, password=password, database=0) for _ in range(6)]

    @property
    def place(self) -> RedisCluster:
        """Where it is, as the gateway is told: three of six nodes."""
        return RedisCluster(tuple(each.server for each in self.nodes[:3]))

    def start(self) -> None:
        """Start the nodes and make them a Cluster."""
        for node in self.nodes:
            node.start()
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for index, node in enumerate(masters):
            first, last = index * 5461, 16_383 if index == 2 else (index + 1) * 5461 - 1
            node.command("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(index + 1))
        for node in self.nodes[1:]:
            node.command("CLUSTER", "MEET", "127.0.0.1", str(self.nodes[0].port))
        wait_until(lambda: all(b"cluster_known_nodes:6" in node.command("CLUSTER", "INFO") for node in self.nodes))
        for replica, master in zip(replicas, masters, strict=True):
            identity = master.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
            wait_until(lambda: b"OK" in replica.command("CLUSTER", "REPLICATE", identity))  # noqa: B023 - called at once
        wait_until(lambda: all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node in self.nodes))
        wait_until(lambda: all(b"master_link_status:up" in node.command("INFO", "replication") for node in replicas))

    def owner(self, slot: int) -> PrivateRedis:
        """Return the node that has a slot."""
        masters = self.nodes[:3]
        return masters[min(slot // 5461, 2)]

    def remove(self) -> None:
        """Stop all and remove their files."""
        for node in self.nodes:
            node.remove()


def wait_until(condition: Callable[[], bool]) -> None:
    """Block until something is so."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the servers did not find each other")
        time.sleep(0.05)
