"""What a failed request or check says of its server."""

from __future__ import annotations

from OpenSSL import SSL
from service_identity import VerificationError
from service_identity.exceptions import CertificateError
from twisted.internet.error import (
    ConnectError,
    ConnectionClosed,
    ConnectionRefusedError,
    DNSLookupError,
    TCPTimedOutError,
    TimeoutError,
    UnknownHostError,
)

from twisted_vllm.errors import UpstreamAnswerCut, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.connect_queue import shortage_in

#: nothing listens at the server's address
CONNECTION_REFUSED = "connection_refused"

#: a request timed out at a server that answered others meanwhile: it is counted, and takes no server out
SLOW = "slow"

#: an answer ended in its midst, which is no matter of what the server speaks
ANSWER_CUT = "answer_cut"

#: the reasons of which there are no more than these; others are ``status_NNN``
KNOWN_FAULTS = (
    *(CONNECTION_REFUSED, "connection_lost", "connection_failed", "name_not_found", "timeout", "tls_failed"),
    *("protocol_error", ANSWER_CUT, SLOW, "status_500", "status_502", "status_503", "status_504"),
)

#: the first that fits names the reason
_REASONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((ConnectionRefusedError,), CONNECTION_REFUSED),
    ((TimeoutError, TCPTimedOutError, UpstreamTimeout), "timeout"),
    ((DNSLookupError, UnknownHostError), "name_not_found"),
    ((SSL.Error, VerificationError, CertificateError), "tls_failed"),
    ((UpstreamAnswerCut,), ANSWER_CUT),
    ((UpstreamProtocolError,), "protocol_error"),
    ((ConnectionClosed,), "connection_lost"),
    ((ConnectError, UpstreamUnreachable, OSError), "connection_failed"),
)

#: every error that is a fault of a server
FAULTS = tuple(kind for kinds, _ in _REASONS for kind in kinds)


def fault_of_error(error: BaseException) -> str | None:
    """Return the reason for which an error counts as a failure of the server; None if it says nothing of the server.

    A want of descriptors or ports is the gateway's own, and so is every error that is not known here.
    """
    if shortage_in(error) is not None:
        return None
    if isinstance(error, UpstreamUnreachable):
        if error.fault:
            return error.fault
        if error.__cause__ is not None:
            return _reason_of(error.__cause__) or _reason_of(error)
    return _reason_of(error)


def _reason_of(error: BaseException) -> str | None:
    return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), None)


def fault_of_request(error: BaseException, *, sent: float, last_alive: float) -> str | None:
    """Return the reason for which a request's error counts as a failure of the server; None if it does not count.

    A timeout only counts if the server answered nobody meanwhile: a long generation is no fault of its server, and one
    client's timeouts must not take a server from all others.

    Args:
        error: The error.
        sent: When the request was sent, in seconds.
        last_alive: When the server last proved that it is alive, in seconds.
    """
    reason = fault_of_error(error)
    if isinstance(error, UpstreamUnreachable):
        # a connection that failed, or a server that its checks found dead
        return reason
    return None if reason == "timeout" and last_alive > sent else reason
