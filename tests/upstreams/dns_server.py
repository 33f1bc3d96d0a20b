"""A DNS server on this machine, over TCP, whose answers the test sets."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.names import dns, error
from twisted.names.server import DNSServerFactory

from twisted_vllm.config.urls import ResolverAddress

HOST = "127.0.0.1"


class _Answers:
    """A resolver of twisted.names that knows what the test sets."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], list[dns.RRHeader]] = {}
        self.additional: dict[tuple[str, int], list[dns.RRHeader]] = {}
        self.failing = False
        self.asked: Counter[str] = Counter()

    def query(self, query: dns.Query, timeout: object = None) -> Deferred[Any]:
        name = query.name.name.decode().lower()
        self.asked[name] += 1
        if self.failing:
            return fail(error.DNSServerError())
        if not any(known == name for known, _ in self.records):
            return fail(error.DomainError())
        return succeed((self.records.get((name, query.type), []), [], self.additional.get((name, query.type), [])))


class _Factory(DNSServerFactory):
    """names' own server, over TCP. It tells SERVFAIL from NXDOMAIN, and logs neither."""

    noisy = False

    def __init__(self, answers: _Answers) -> None:
        super().__init__(clients=[answers])
        self._answers = answers

    def gotResolverError(self, failure: Any, protocol: Any, message: Any, address: Any) -> None:
        code = dns.ESERVER if self._answers.failing else dns.ENAME
        self.sendReply(protocol, self._responseFromMessage(message=message, rCode=code), address)


class DnsServer:
    """A DNS server.

    Attributes:
        failing: whether it answers SERVFAIL.
        asked: how often each name was asked for.
    """

    def __init__(self, reactor: Any) -> None:
        self._answers = _Answers()
        self.factory = _Factory(self._answers)
        self._port = reactor.listenTCP(0, self.factory, interface=HOST)
        self.address = ResolverAddress(HOST, self._port.getHost().port)

    @property
    def asked(self) -> Counter[str]:
        return self._answers.asked

    def fail(self, failing: bool = True) -> None:
        self._answers.failing = failing

    def forget(self, name: str) -> None:
        """Let a name not exist."""
        for known in [known for known in self._answers.records if known[0] == name]:
            del self._answers.records[known]

    def addresses(self, name: str, *addresses: str, ttl: int = 60) -> None:
        """Set the addresses of a name."""
        self.forget(name)
        self._answers.records[name, dns.A] = []
        for address in addresses:
            kind: Any = dns.Record_AAAA if ":" in address else dns.Record_A
            self._add(self._answers.records, name, kind(address, ttl), ttl)

    def alias(self, name: str, of: str, *addresses: str, ttl: int = 60) -> None:
        """Let a name be an alias, with the addresses of what it stands for in the answer."""
        self.forget(name)
        found = [dns.RRHeader(name, dns.CNAME, ttl=ttl, payload=dns.Record_CNAME(of, ttl))]
        found += [dns.RRHeader(of, dns.A, ttl=ttl, payload=dns.Record_A(each, ttl)) for each in addresses]
        self._answers.records[name, dns.A] = found

    def services(self, name: str, *each: tuple[int, int, int, str], ttl: int = 60) -> None:
        """Set the SRV records of a name: priority, weight, port and target of each."""
        self.forget(name)
        self._answers.records[name, dns.SRV] = []
        for priority, weight, port, target in each:
            self._add(self._answers.records, name, dns.Record_SRV(priority, weight, port, target, ttl), ttl)

    def tell_address(self, name: str, target: str, address: str) -> None:
        """Add the address of a target to the answer about a name's SRV records."""
        kind = dns.Record_AAAA if ":" in address else dns.Record_A
        found = self._answers.additional.setdefault((name, dns.SRV), [])
        found.append(dns.RRHeader(target, kind.TYPE, ttl=60, payload=kind(address, 60)))

    def _add(self, table: Any, name: str, record: Any, ttl: int) -> None:
        table.setdefault((name, record.TYPE), []).append(dns.RRHeader(name, record.TYPE, ttl=ttl, payload=record))

    async def stop(self) -> None:
        """Close the port."""
        await self._port.stopListening()
