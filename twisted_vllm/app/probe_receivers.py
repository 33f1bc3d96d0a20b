"""``--check --probe``: looks whether those who are told of requests can be reached. It tells them nothing.

Each look blocks, and runs in a thread.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import attrs

from twisted_vllm.app.openable import write_fault
from twisted_vllm.config.alerting import SLACK, WEBHOOK
from twisted_vllm.config.describe_telemetry import origin_of
from twisted_vllm.config.otlp_sinks import OTLP, log_destination
from twisted_vllm.config.s3 import Bucket
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.sinks import LOCAL_SYSLOG, SinkSettings
from twisted_vllm.config.tracing_destinations import GRPC, TraceDestination
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed
from twisted_vllm.observability.sinks.sockets import JournalDestination, SyslogDestination, reason_of

#: how long a connection, and an answer, may take, in seconds
PATIENCE = 10.0

#: what a receiver of OTLP may answer to an export without content
_EMPTY_REFUSED = (400, 422)


class Unusable(Exception):
    """A receiver cannot be used. The message says why, without a URL and without a key."""


@attrs.frozen
class Receiver:
    """Somebody who is told of requests.

    Attributes:
        subject: who it is, for people.
        look: looks at it, and returns what it found; raises `Unusable`. It blocks.
    """

    subject: str
    look: Callable[[], str]


def receivers_of(settings: Settings) -> Iterator[Receiver]:
    """Yield everybody who is told of requests: sinks, receivers of OTLP, the export's bucket, webhooks of alerts."""
    for sink in settings.all_sinks:
        look = _LOOKS.get(sink.type)
        if look is not None:
            yield Receiver(f"sink {sink.name}", _of_sink(look, sink))
    if settings.tracing.active:
        for each in settings.tracing.destinations:
            yield Receiver(f"traces to {each.name}", _of_otlp(each))
    if settings.otlp_metrics.active:
        yield Receiver("metrics by OTLP", _of_otlp(settings.otlp_metrics.destination))
    export = settings.ledger.export
    if export.enabled:
        yield Receiver("directory of the ledger's export", lambda: _look_at_directory(export.directory or ""))
    if export.enabled and export.s3.bucket is not None:
        yield Receiver("export of the ledger", lambda: _look_at_bucket(export.s3))
    # by where they lead, as one look is enough for several hooks of a host
    webhooks = {origin_of(url): url for url in _webhooks(settings)}
    for origin, url in webhooks.items():
        yield Receiver(f"alerts to {origin}", _of_url(url))


def _webhooks(settings: Settings) -> Iterator[str]:
    """Yield the URLs that alerts are posted to."""
    found: list[Secret | None] = []
    if SLACK in settings.alerting:
        found.append(settings.alerts.slack_webhook_url)
        found += [url for urls in settings.alert_to_webhook_url.values() for url in urls]
    if WEBHOOK in settings.alerting:
        found.append(settings.alerts.webhook_url)
    yield from (url.reveal() for url in found if url is not None)


def _of_sink(look: Callable[[SinkSettings], str], sink: SinkSettings) -> Callable[[], str]:
    return lambda: look(sink)


def _of_url(url: str) -> Callable[[], str]:
    return lambda: connect(url)


def _of_otlp(destination: TraceDestination) -> Callable[[], str]:
    return lambda: look_at_otlp(destination)


def connect(url: str, ca_file: str | None = None, certificate: tuple[str, str | None] | None = None) -> str:
    """Connect to the host of a URL, by TLS if it asks for it, and send nothing.

    Args:
        url: the URL.
        ca_file: the authorities of its certificate, in PEM; None for the system's.
        certificate: the files of the certificate that is shown, and of its key; None for none.

    Raises:
        Unusable: it cannot be reached.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    try:
        with socket.create_connection((host, port), PATIENCE) as plain:
            if secure:
                context = ssl.create_default_context(cafile=ca_file)
                if certificate is not None:
                    context.load_cert_chain(*certificate)
                context.wrap_socket(plain, server_hostname=host).close()
    except TimeoutError:
        raise Unusable(f"it accepted no connection within {PATIENCE:g} s") from None
    except OSError as error:
        raise Unusable(reason_of(error)) from None
    except UnicodeError:
        # a label of the name is empty, or longer than 63 characters
        raise Unusable("its name is not known") from None
    return f"{origin_of(url)} accepts connections; nothing was sent"


def look_at_otlp(destination: TraceDestination) -> str:
    """Look at a receiver of OTLP: over HTTP by an export without content, which also tries the key.

    Raises:
        Unusable: it cannot be reached, or does not take exports.
    """
    where = origin_of(destination.endpoint)
    if destination.protocol == GRPC:
        shown = destination.certificate_file
        return connect(
            destination.endpoint, destination.ca_file, None if shown is None else (shown, destination.key_file)
        )
    # only here, as it imports what the extra brings
    from twisted_vllm.observability.otlp_session import OwnSession, keep_messages

    keep_messages()
    session = OwnSession(
        {name: value.reveal() for name, value in destination.headers.items()},
        ca_file=destination.ca_file,
        certificate_file=destination.certificate_file,
        key_file=destination.key_file,
    )
    headers = {"content-type": "application/x-protobuf"}
    try:
        with session:
            session.request("POST", destination.endpoint, data=b"", headers=headers, timeout=PATIENCE)
    except OSError:
        # requests' errors are of this kind
        status = session.status
        if status in _EMPTY_REFUSED:
            return f"{where} answers; it refuses an export without content ({status})"
        if status in (401, 403):
            raise Unusable(f"it answers {status}: it does not accept the key (headers)") from None
        if status in (404, 405):
            raise Unusable(f"it answers {status}: it takes no OTLP at this path") from None
        raise Unusable(session.problem or (f"it answers {status}" if status else "it cannot be reached")) from None
    return f"{where} takes an export without content"


def _look_at_webhook(sink: SinkSettings) -> str:
    assert sink.url is not None
    return connect(sink.url.reveal(), sink.ca_file)


def _look_at_otlp_sink(sink: SinkSettings) -> str:
    return look_at_otlp(log_destination(sink))


def _look_at_file(sink: SinkSettings) -> str:
    path = os.path.abspath(sink.path or "")
    faults = {
        errno.ENOENT: f"there is no directory {os.path.dirname(path)}",
        errno.EISDIR: f"{path} is a directory",
        errno.EACCES: f"{path} may not be written",
    }
    number = write_fault(path)
    if number is not None:
        raise Unusable(faults[number])
    return f"{path} can be written"


def _deliver_nothing(destination: SyslogDestination | JournalDestination) -> None:
    """Have a destination connect: it does so with its first batch, which may be empty."""
    try:
        destination.deliver(())
    except DeliveryFailed as error:
        raise Unusable(str(error)) from None
    finally:
        destination.close()


def _look_at_syslog(sink: SinkSettings) -> str:
    address = sink.address or LOCAL_SYSLOG
    _deliver_nothing(SyslogDestination(address, sink.ca_file))
    if address.transport == "udp":
        return "its name is known; UDP does not tell whether anybody listens"
    return "it accepts connections; nothing was sent"


def _look_at_journal(sink: SinkSettings) -> str:
    _deliver_nothing(JournalDestination(sink.socket))
    return f"{sink.socket} accepts entries; nothing was sent"


def _look_at_bucket_of(sink: SinkSettings) -> str:
    return _look_at_bucket(sink.as_bucket)


def _look_at_directory(path: str) -> str:
    # what is missing of it is made with the first file
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise Unusable(f"{there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Unusable(f"{there} may not be written")
    return f"{path} can be written"


def _look_at_bucket(bucket: Bucket) -> str:
    from twisted_vllm.observability.sinks.object_storage import look_at_bucket

    try:
        look_at_bucket(bucket)
    except DeliveryFailed as error:
        raise Unusable(str(error)) from None
    return f"the bucket {bucket.bucket} is there; nothing was written"


def _look_at_object(sink: SinkSettings) -> str:
    from twisted_vllm.observability.sinks.python_object import ObjectError, load_object

    assert sink.object is not None
    try:
        load_object(sink.object, sink.import_from)
    except ObjectError as error:
        raise Unusable(str(error)) from None
    return f"{sink.object} can be used"


_LOOKS: dict[str, Callable[[SinkSettings], str]] = {
    "file": _look_at_file,
    "journald": _look_at_journal,
    "python": _look_at_object,
    "s3": _look_at_bucket_of,
    "syslog": _look_at_syslog,
    "webhook": _look_at_webhook,
    OTLP: _look_at_otlp_sink,
}
