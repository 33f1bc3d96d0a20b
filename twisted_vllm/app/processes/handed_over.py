"""Hands the settings in effect to a process that begins, so that it has those of the others.

The file may have been changed since the last reload, or be half written. So the supervisor keeps its settings in
memory that its processes inherit. A process with newer code, whose settings have other fields, reads the file.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from twisted_vllm.app.shared.settings_digest import Fingerprint, fingerprint_of
from twisted_vllm.config.settings import Settings


class HandedOver:
    """Settings in a file without a name, in memory (memfd_create(2)). It belongs to the gateway's user alone.

    Attributes:
        descriptor: the file; None where the system has no such files.
    """

    def __init__(self, settings: Settings) -> None:
        """Write settings."""
        self.descriptor: int | None = None
        if not hasattr(os, "memfd_create"):
            return
        data = pickle.dumps((fingerprint_of(settings), settings), pickle.HIGHEST_PROTOCOL)
        self.descriptor = os.memfd_create("settings", os.MFD_CLOEXEC)
        with open(self.descriptor, "wb", closefd=False) as file:
            file.write(data)

    def close(self) -> None:
        """Forget them; processes that have begun have what they need."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def take_over(descriptor: int | None) -> Settings | None:
    """Return the supervisor's settings; None if they are not to be had, or are of other code.

    Args:
        descriptor: of the file, which is closed.
    """
    if descriptor is None:
        return None
    try:
        # not from its place: others read the same file
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        found: tuple[Fingerprint, Any] = pickle.loads(data)
        fingerprint, settings = found
        return settings if isinstance(settings, Settings) and fingerprint_of(settings) == fingerprint else None
    except (OSError, pickle.UnpicklingError, AttributeError, ImportError, TypeError, ValueError, EOFError):
        return None
    finally:
        os.close(descriptor)
