"""The settings of the export, ``passthrough.ledger.usage_export``: the rows of each closed day as Parquet files."""

from __future__ import annotations

from datetime import date, datetime
from importlib.util import find_spec

import attrs

from twisted_vllm.config.checks import checker, flag, one_of, optional, seconds, text, whole
from twisted_vllm.config.declaration import Section, section, setting, settings_of
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.s3 import NO_BUCKET, Bucket, check_key_pair, check_s3_installed

PARQUET = "parquet"
#: what must be installed for the format, and how
PARQUET_EXTRA = "pip install 'twisted-vllm[parquet]'"
#: where files are unless the settings say so, in the run directory
EXPORT_DIRECTORY = "vllm_passthrough.usage"

COMPRESSIONS = ("zstd", "snappy", "gzip", "none")


@checker("date", "as in 2026-03-01")
def day(value: object, place: Place) -> date:
    """Check for a day."""
    # YAML reads an unquoted date as one
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(text(value, place))
    except ValueError:
        raise Rejected("must be a date (such as 2026-03-01)") from None


@attrs.frozen
class UsageExportSettings:
    """Which rows of the ledger are exported, and where to."""

    format: str | None = setting(
        None,
        optional(one_of(PARQUET), "nothing is exported"),
        "The format of the files. In place of the mapping, the format alone may be written: usage_export: parquet.",
    )
    directory: str | None = setting(
        None,
        optional(text, f"usage_export_directory, else {EXPORT_DIRECTORY} in the run directory"),
        "The directory of the files: usage/date=2026-11-29/usage-0000.parquet below it. With s3 it holds the files of "
        "one day until they are sent.",
    )
    s3: Bucket = setting(
        NO_BUCKET,
        section(Bucket),
        "A bucket that gets the files, in place of the directory. The keys of objects are "
        "PREFIXusage/date=2026-11-29/usage-0000.parquet.",
    )
    compression: str = setting("zstd", one_of(*COMPRESSIONS), "How the files are compressed.")
    begin: date | None = setting(
        None, optional(day, "all rows that are kept"), "The first day (UTC) that is exported, such as 2026-03-01."
    )
    delay: float = setting(
        7_200.0,
        seconds(zero=True),
        "How long after midnight (UTC) a day is exported: time for requests that began before midnight to end.",
    )
    rows_per_file: int = setting(
        5_000_000, whole(1_000), "The most rows of one file. A day with more has several files.", unit="rows"
    )
    recheck_days: int = setting(
        7,
        whole(0),
        "For how many days rows may come late, as from a spool after an outage: the files of the day are written anew "
        "then.",
        unit="days",
    )
    hold_rows: bool = setting(
        True,
        flag,
        "Whether usage_retention keeps the rows of a day until they are exported, however long the export fails.",
    )

    @property
    def enabled(self) -> bool:
        """Whether anything is exported."""
        return self.format is not None

    @property
    def target(self) -> str:
        """Where the files go, in words."""
        if self.s3.bucket is not None:
            return f"s3://{self.s3.bucket}/{self.s3.prefix}"
        return self.directory or EXPORT_DIRECTORY


class _ExportSection(Section[UsageExportSettings]):
    """The section, which one word may stand for, and what its settings must agree in."""

    def __call__(self, value: object, place: Place, /) -> UsageExportSettings:
        if isinstance(value, str):
            value = {"format": value}
        elif value is not None and not isinstance(value, dict):
            raise Rejected(f"must be {PARQUET}, or a mapping with format: {PARQUET}")
        elif value and "format" not in value:
            place.key("format").warn(f"nothing is exported: it is missing (write {PARQUET})")
        found = super().__call__(value, place)
        if not found.enabled:
            return found
        if find_spec("pyarrow") is None:
            place.refuse(f"needs PyArrow ({PARQUET_EXTRA})")
        here = place.key("s3")
        if found.s3.bucket is not None:
            check_key_pair(found.s3, here)
            check_s3_installed(here)
        elif found.s3 != NO_BUCKET and not place.report.refused_below(here.key("bucket").path):
            here.key("bucket").refuse("is missing (the name of the bucket that gets the files)")
        return found


EXPORT_SECTION: Section[UsageExportSettings] = _ExportSection(UsageExportSettings, settings_of(UsageExportSettings))
