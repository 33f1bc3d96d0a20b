"""The ledger's settings: ``passthrough.ledger``, and where its spool is."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import make_url

from twisted_vllm.config.header_names import header_name
from twisted_vllm.config.settings import LedgerSettings, Settings
from twisted_vllm.config.shape import Section, duration, flag, list_of, one_of, optional, text

#: what stands behind the name of the database's file, and the name where the database is no file
SPOOL_SUFFIX = ".spool"
SPOOL_NAME = "vllm_passthrough.spool"

ledger = Section(
    LedgerSettings,
    {
        "enabled": flag,
        "spool_directory": optional(text),
        # A day: a spool that waited for longer would bring back rows that were deleted.
        "usage_retention": optional(duration("1d")),
        "on_spool_failure": one_of("continue", "refuse"),
        "count_stream_usage": one_of("inject", "passive"),
        "usage_headers": list_of(header_name),
    },
)


def spool_directory(settings: Settings) -> Path:
    """Return the directory of the spool; a relative one is below the run directory."""
    if settings.ledger.spool_directory is not None:
        return Path(settings.ledger.spool_directory)
    url = make_url(settings.database_url.reveal())
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(f"{url.database}{SPOOL_SUFFIX}")
    return Path(SPOOL_NAME)
