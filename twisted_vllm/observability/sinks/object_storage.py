"""Writes batches as objects to any S3 service, by boto3, which is imported only where the settings ask for it."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from zope.interface import implementer

from twisted_vllm.config.s3 import Bucket
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.sinks import SinkSettings
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination

#: how long a connection, and an answer, may take, in seconds
CONNECT_SECONDS, READ_SECONDS = 10, 20

#: what another attempt does not change (Amazon's list of error codes); bad credentials may be mended meanwhile
_FOR_GOOD = frozenset(("EntityTooLarge", "KeyTooLongError", "InvalidArgument", "InvalidRequest", "MethodNotAllowed"))


@implementer(IBlockingDestination)
class S3Destination:
    """Puts one object for each batch: gzip, a JSON object on each line."""

    def __init__(self, sink: SinkSettings, now: Callable[[], float], randbytes: Callable[[int], bytes]) -> None:
        """Make the client.

        Args:
            sink: the settings.
            now: the time in Unix seconds.
            randbytes: for the names of objects.

        Raises:
            DeliveryFailed: it cannot be made.
        """
        self._sink = sink
        self._now = now
        self._randbytes = randbytes
        try:
            self._client = s3_client(sink.as_bucket)
        except Exception as error:
            raise DeliveryFailed(_words(error), retryable=True) from None

    def deliver(self, batch: Sequence[bytes]) -> None:
        """Put a batch."""
        body = gzip.compress(b"\n".join(batch) + b"\n", 5, mtime=0)
        try:
            self._client.put_object(
                Bucket=self._sink.bucket,
                Key=object_key(self._sink.prefix, self._now(), self._randbytes),
                Body=body,
                ContentType="application/x-ndjson",
                ContentEncoding="gzip",
            )
        except Exception as error:
            raise failure_of(error) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def look_at_bucket(bucket: Bucket) -> None:
    """Ask whether a bucket is there, and write nothing.

    Raises:
        DeliveryFailed: it is not, or may not be used.
    """
    try:
        client = s3_client(bucket)
        try:
            client.head_bucket(Bucket=bucket.bucket)
        finally:
            client.close()
    except Exception as error:
        failure = failure_of(error)
        # the answer to a HEAD has no body, and so no code
        words = {
            "404": f"there is no bucket {bucket.bucket}",
            "403": f"the key may not use the bucket {bucket.bucket}, or is not accepted",
        }
        raise DeliveryFailed(words.get(str(failure)[-3:], str(failure)), retryable=True) from None


def object_key(prefix: str, seconds: float, randbytes: Callable[[int], bytes]) -> str:
    """Return the key of an object: the prefix, the date, the time, and what makes it unique.

    Args:
        prefix: the prefix of the settings.
        seconds: the time in Unix seconds.
        randbytes: random bytes.
    """
    when = datetime.fromtimestamp(seconds, UTC)
    return f"{prefix}{when:%Y-%m-%d}/{when:%H-%M-%S}-{randbytes(8).hex()}.jsonl.gz"


def s3_client(bucket: Bucket) -> Any:
    """Return boto3's client of a bucket's service. It tries nothing a second time."""
    import boto3
    from botocore.config import Config

    def revealed(secret: Secret | None) -> str | None:
        return None if secret is None else secret.reveal()

    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # the queue tries again
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path" if bucket.path_style else "auto"},
        # services other than Amazon's may not know the newer checksums
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=bucket.endpoint_url,
        region_name=bucket.region,
        aws_access_key_id=revealed(bucket.access_key_id),
        aws_secret_access_key=revealed(bucket.secret_access_key),
        aws_session_token=revealed(bucket.session_token),
        verify=bucket.ca_file,
        config=config,
    )


def failure_of(error: Exception) -> DeliveryFailed:
    """Return why the service failed, in words without URLs and keys."""
    from botocore.exceptions import ClientError

    if not isinstance(error, ClientError):
        return DeliveryFailed(_words(error), retryable=True)
    code = str(error.response.get("Error", {}).get("Code", ""))[:60]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return DeliveryFailed(
        f"it answers {status} {code}".rstrip(), retryable=code not in _FOR_GOOD, too_large=code == "EntityTooLarge"
    )


def _words(error: Exception) -> str:
    """Return a kind of error in words: its own text may hold the URL."""
    name = type(error).__name__
    words = {
        "NoCredentialsError": "there are no credentials (set AWS_ACCESS_KEY_ID, or write access_key_id)",
        "EndpointConnectionError": "it cannot be reached",
        "ConnectTimeoutError": f"it did not accept a connection within {CONNECT_SECONDS} s",
        "ReadTimeoutError": f"it did not answer within {READ_SECONDS} s",
        "NoRegionError": "there is no region (set AWS_DEFAULT_REGION, or write region)",
        "SSLError": "TLS failed",
        "ModuleNotFoundError": "boto3 is not installed",
    }
    return words.get(name, f"the client failed ({name})")
