"""What the gateway and the process that writes a day tell each other: JSON on standard input and output."""

from __future__ import annotations

import msgspec

#: the values of `Report.result`
DONE, KEPT, LOST, FAILED = "done", "kept", "lost", "failed"


class BucketAccess(msgspec.Struct, frozen=True):
    """A bucket, as `twisted_vllm.config.s3.Bucket`; its secrets in the clear."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    path_style: bool = False
    ca_file: str | None = None


class Job(msgspec.Struct, frozen=True):
    """A day to write.

    It goes through standard input: arguments and the environment of a process can be read by others.

    Attributes:
        database_url: the database.
        day: days since 1970 (UTC).
        owner: the owner of the claim.
        requests: what the sums counted when the day was claimed.
        former_rows: the rows of the files that are there; None without any.
        directory: where files are made, and stay without a bucket.
        compression: as in the settings.
        rows_per_file: the most rows of a file.
        bucket: the bucket that gets the files.
    """

    database_url: str
    day: int
    owner: str
    requests: int
    former_rows: int | None
    directory: str
    compression: str = "zstd"
    rows_per_file: int = 5_000_000
    bucket: BucketAccess | None = None


class Report(msgspec.Struct, frozen=True):
    """What became of it.

    Attributes:
        result: ``done``; ``kept``: the former files stay, as they have more rows than the ledger has now; ``lost``: the
            claim lapsed, and another gateway has it; or ``failed``.
        files: how many files.
        rows: how many rows.
        bytes: how many bytes.
        error: why it failed, without secrets.
    """

    result: str
    files: int = 0
    rows: int = 0
    bytes: int = 0
    error: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the day is exported."""
        return self.result == DONE

    @property
    def is_kept(self) -> bool:
        """Whether the former files stay."""
        return self.result == KEPT

    @property
    def is_failed(self) -> bool:
        """Whether it failed."""
        return self.result == FAILED


encode = msgspec.json.Encoder().encode
job_of = msgspec.json.Decoder(Job).decode
report_of = msgspec.json.Decoder(Report).decode
