"""A bucket of an S3 service: one declaration for sinks and for the export of the ledger."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import attrs

from twisted_vllm.config.checks import checker, flag, optional, text
from twisted_vllm.config.checks import secret as credential
from twisted_vllm.config.declaration import setting, settings_of
from twisted_vllm.config.problems import Place, Rejected
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.web_urls import web_url

#: what must be installed for S3, and how
S3_EXTRA = "pip install 'twisted-vllm[s3]'"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@checker("URL", "http:// or https://")
def s3_endpoint(value: object, place: Place) -> str:
    """Check for the URL of an S3 service."""
    return web_url(
        text(value, place), place, "https://minio.example.com", instead="write access_key_id and secret_access_key"
    )


@checker("bucket")
def bucket_name(value: object, place: Place) -> str:
    """Check for the name of a bucket (Amazon's rules of names)."""
    found = text(value, place)
    if not _BUCKET.fullmatch(found):
        raise Rejected("must be the name of a bucket: 3 to 63 lower-case letters, digits, '.' and '-'")
    return found


@checker("prefix", "without a leading slash")
def key_prefix(value: object, place: Place) -> str:
    """Check for what the keys of objects begin with."""
    if value == "":
        return ""
    found = text(value, place)
    if found.startswith("/") or len(found.encode()) > 512:
        raise Rejected("must not begin with a slash, and have 512 bytes at most (such as gateway/eu/)")
    return found


@attrs.frozen
class Bucket:
    """A bucket, and how it is reached."""

    bucket: str | None = setting(None, optional(bucket_name, "none"), "The bucket.")
    prefix: str = setting("", key_prefix, "What the keys of objects begin with, such as gateway/eu/.")
    endpoint_url: str | None = setting(
        None, optional(s3_endpoint, "Amazon's"), "The URL of the service, such as http://minio:9000."
    )
    region: str | None = setting(None, optional(text, "AWS_DEFAULT_REGION"), "The region.")
    access_key_id: Secret | None = setting(
        None,
        optional(credential, "AWS_ACCESS_KEY_ID, a profile, or the role of the machine"),
        "The id of the access key.",
    )
    secret_access_key: Secret | None = setting(None, optional(credential, "likewise"), "The access key.")
    session_token: Secret | None = setting(None, optional(credential, "none"), "The token of a temporary key.")
    path_style: bool = setting(
        False, flag, "Whether the bucket stands in the path of URLs, as services other than Amazon's often need."
    )
    ca_file: str | None = setting(
        None,
        optional(text, "the system's authorities"),
        "The file, in PEM, with the authorities that the certificate is checked against.",
    )

    @property
    def secrets(self) -> list[str]:
        """What the log must not show."""
        given = (self.access_key_id, self.secret_access_key, self.session_token)
        return [each.reveal() for each in given if each is not None]


NO_BUCKET = Bucket()

_DECLARED = {each.attribute: each for each in settings_of(Bucket)}


def of_bucket(name: str, doc: str = "") -> Any:
    """Declare a setting of `Bucket` in a class that has settings of other kinds beside it.

    Args:
        name: its name.
        doc: its description; empty for the same.
    """
    declared = _DECLARED[name]
    words = doc or f"{declared.doc[0].lower()}{declared.doc[1:]}"
    return setting(declared.default, declared.check, f"s3: {words}")


def check_key_pair(bucket: Bucket, place: Place) -> None:
    """Report half of an access key."""
    if (bucket.access_key_id is None) != (bucket.secret_access_key is None):
        place.refuse("needs access_key_id and secret_access_key together, or none of them")


def check_s3_installed(place: Place) -> None:
    """Report that the extra ``s3`` is not installed."""
    if find_spec("boto3") is None:
        place.refuse(f"needs boto3 ({S3_EXTRA})")
