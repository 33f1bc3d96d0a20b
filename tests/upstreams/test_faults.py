"""What an error says of the server."""

from __future__ import annotations

import errno

import pytest
from OpenSSL import SSL
from twisted.internet.defer import CancelledError
from twisted.internet.error import (
    ConnectBindError,
    ConnectError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    NoRouteError,
    TCPTimedOutError,
    TimeoutError,
)

from twisted_vllm.errors import (
    OutOfSockets,
    ServerBusy,
    UpstreamAnswerCut,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from twisted_vllm.upstreams.faults import KNOWN_FAULTS, fault_of_error, fault_of_request


def unreachable(cause: BaseException | None = None, fault: str = "") -> UpstreamUnreachable:
    error = UpstreamUnreachable("…")
    error.__cause__, error.fault = cause, fault
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(), "connection_refused"),
        (TimeoutError(), "timeout"),
        (TCPTimedOutError(), "timeout"),
        (UpstreamTimeout("…"), "timeout"),
        (DNSLookupError(), "name_not_found"),
        (SSL.Error([("SSL routines", "", "certificate verify failed")]), "tls_failed"),
        (UpstreamProtocolError("…"), "protocol_error"),
        (UpstreamAnswerCut("…"), "answer_cut"),
        (ConnectionLost(), "connection_lost"),
        (ConnectionDone(), "connection_lost"),
        (NoRouteError(), "connection_failed"),
        (UpstreamUnreachable("…"), "connection_failed"),
        (unreachable(ConnectionRefusedError()), "connection_refused"),
        (unreachable(ConnectionLost()), "connection_lost"),
        (unreachable(SSL.Error([("SSL routines", "", "certificate verify failed")])), "tls_failed"),
        (unreachable(ValueError()), "connection_failed"),
        (unreachable(fault="status_503"), "status_503"),
    ],
)
def test_each_fault_of_a_server_has_a_name(error: BaseException, reason: str) -> None:
    assert reason in KNOWN_FAULTS
    assert fault_of_error(error) == fault_of_request(error, sent=1.0, last_alive=0.0) == reason


@pytest.mark.parametrize(
    "error",
    [
        ConnectError(errno.EMFILE, "Too many open files"),
        ConnectBindError(errno.EADDRNOTAVAIL, "no port"),
        OutOfSockets("…"),
        ServerBusy("…"),
        CancelledError(),
        ValueError(),
    ],
    ids=repr,
)
def test_what_the_gateway_lacks_or_does_itself_is_no_fault_of_the_server(error: BaseException) -> None:
    assert fault_of_error(error) is None


def test_a_timeout_counts_only_if_the_server_answered_nobody_meanwhile() -> None:
    error = UpstreamTimeout("…")
    assert fault_of_request(error, sent=10.0, last_alive=9.0) == "timeout"
    assert fault_of_request(error, sent=10.0, last_alive=11.0) is None
    refused = ConnectionRefusedError()
    assert fault_of_request(refused, sent=10.0, last_alive=11.0) == "connection_refused"


def test_what_waits_at_a_server_that_its_checks_find_frozen_failed_by_a_timeout_whoever_was_answered() -> None:
    assert fault_of_request(unreachable(fault="timeout"), sent=1.0, last_alive=2.0) == "timeout"
