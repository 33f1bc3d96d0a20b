"""Starts the process that exports a day, hands it its job, and takes its report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.s3 import Bucket
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.usage_export import UsageExportSettings
from twisted_vllm.storage.usage.exports import Work
from twisted_vllm.usage_export.job import FAILED, BucketAccess, Job, Report, encode, report_of

#: the most bytes that are kept of what the process writes
MAX_OUTPUT = 65_536

# -P: no module is loaded from the working directory
_COMMAND = ("-P", "-m", "twisted_vllm.usage_export.process")


class ExportProcess(ProcessProtocol):
    """Hands a job to a process, and collects its report.

    Attributes:
        ended: fires with the report.
    """

    _log = Logger()

    def __init__(self, job: Job) -> None:
        """Make it; the process starts afterwards."""
        self.ended: Deferred[Report] = Deferred()
        self._job: Job | None = job
        self._output = self._errors = b""

    def connectionMade(self) -> None:
        """Send the job. Standard input stays open: its end would end the process."""
        job, self._job = self._job, None
        assert self.transport is not None and job is not None
        self.transport.write(encode(job) + b"\n")

    def outReceived(self, data: bytes) -> None:
        """Collect the report."""
        self._output = (self._output + data)[:MAX_OUTPUT]

    def errReceived(self, data: bytes) -> None:
        """Keep the end of what else it says: a traceback's last line says most."""
        self._errors = (self._errors + data)[-MAX_OUTPUT:]

    def processEnded(self, reason: Failure) -> None:
        """Fire."""
        self.ended.callback(self._report(reason))

    def stop(self) -> None:
        """End the process, which leaves nothing under a final name. Idempotent."""
        if self.transport is not None:
            try:
                self.transport.signalProcess("KILL")
            except ProcessExitedAlready:
                return

    def _report(self, reason: Failure) -> Report:
        try:
            return report_of(self._output)
        except msgspec.DecodeError:
            pass
        signal, status = getattr(reason.value, "signal", None), getattr(reason.value, "exitCode", None)
        how = f"by signal {signal}" if signal is not None else f"with status {status}"
        last = self._errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        if last:
            self._log.error("The process of the export said: {last}", last=last[:500])
        return Report(FAILED, error=f"its process ended {how}")


def spawn(reactor: Any, process: ExportProcess) -> None:
    """Start a process.

    Raises:
        OSError: there is no room for one.
    """
    arguments = (sys.executable, *_COMMAND)
    reactor.spawnProcess(process, sys.executable, arguments, env=_environment(os.environ))


def not_started(error: OSError) -> Report:
    """Return the report of a process that could not be started."""
    return Report(FAILED, error=f"its process cannot be started: {error.strerror}")


def job_for(work: Work, settings: UsageExportSettings, url: Secret) -> Job:
    """Return the job of a day that is claimed."""
    return Job(
        database_url=url.reveal(),
        day=work.day,
        owner=work.owner,
        requests=work.requests,
        former_rows=work.former_rows,
        directory=settings.directory or "",
        compression=settings.compression,
        rows_per_file=settings.rows_per_file,
        bucket=_access(settings.s3),
    )


def _access(bucket: Bucket) -> BucketAccess | None:
    if bucket.bucket is None:
        return None

    def revealed(secret: Secret | None) -> str | None:
        return None if secret is None else secret.reveal()

    return BucketAccess(
        bucket=bucket.bucket,
        prefix=bucket.prefix,
        endpoint_url=bucket.endpoint_url,
        region=bucket.region,
        access_key_id=revealed(bucket.access_key_id),
        secret_access_key=revealed(bucket.secret_access_key),
        session_token=revealed(bucket.session_token),
        path_style=bucket.path_style,
        ca_file=bucket.ca_file,
    )


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the process: it loads the modules from where the gateway does."""
    return {**environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
