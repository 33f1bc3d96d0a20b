"""The thread that syncs a spool to the disk, once a second."""

from __future__ import annotations

import threading

from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.spool.followed import FollowedSpool

#: seconds between two syncs: what a crash of the machine may lose
SYNC_SECONDS = 1.0


class SyncThread:
    """Syncs a spool until it is stopped. A failing disk is logged, and tried again."""

    _log = Logger()

    def __init__(self, spool: FollowedSpool) -> None:
        """Set up; `start` starts the thread."""
        self._spool = spool
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="ledger-sync", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end."""
        self._stopping.set()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, for so many seconds at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopping.wait(SYNC_SECONDS):
            try:
                self._spool.sync()
            except OSError as error:
                if not self._failed:
                    self._log.critical(
                        "The ledger's spool cannot be synced: {reason}", reason=error.strerror, **LEDGER_ALERT
                    )
                self._failed = True
            else:
                self._failed = False
