"""Gives memory back to the system: of large blocks, and of what nobody needs after the start."""

from __future__ import annotations

import ctypes
import gc
import linecache
from contextlib import suppress

#: blocks of this size in bytes and more are mapped, each for itself, and unmapped when they are freed
MAPPED = 131_072

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def map_large_blocks() -> None:
    """Keep glibc's thresholds as they are at the start of a process; another C library is left as it is.

    glibc raises them to the size of each mapped block that is freed, up to 32 MiB: after a few large bodies the next
    ones lie in the heap, between small objects that live on, and their memory stays with the process for ever.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED)
        mallopt(_M_TRIM_THRESHOLD, MAPPED)


def forget_generated_sources() -> None:
    """Forget the sources of what attrs generated, for tracebacks: a megabyte, of some 300 classes."""
    linecache.clearcache()


def spare_from_collection() -> None:
    """Exempt what there is from garbage collection: it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
