"""Embeddings in a bucket of S3, or of anything that speaks its language: for whole projects, and for workers without a disk in common.

Nothing is put out here: a lifecycle rule of the bucket does that (docs/deploy.md). Address of the service and credentials come the way every
AWS tool takes them (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_PROFILE, a role of the machine and so on). Needs the extra `s3`.
"""

from __future__ import annotations

import io
import re
from contextlib import closing, suppress
from typing import Any

from sam2_backend.embedding_name import MOST_BYTES, place_of, preface_of
from sam2_backend.errors import SettingsError

CONNECT_S, READ_S = 1.0, 2.0
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[^?#]*))?")


class EmbeddingBucket:
    """A bucket below a prefix. Safe to use from several threads; its methods take seconds where the service hangs.

    Args:
        url: s3://bucket or s3://bucket/prefix.

    Raises:
        SettingsError: the URL is no such URL, boto3 is missing, or AWS' own settings contradict one another.
    """

    def __init__(self, url: str) -> None:
        self._bucket, self._prefix = parse_bucket_url(url)
        self._client, self._refused = _client()

    def get(self, key: str) -> bytes | None:
        """The embedding; None: it is not here, or not as it was written, and thrown away.

        Raises:
            Exception: the service does not answer, or refuses.
        """
        preface = preface_of(key)
        try:
            answer = self._client.get_object(**self._place(key))
        except self._refused as error:
            if _is_absence(error):
                return None
            raise
        with closing(answer["Body"]) as body:
            n_bytes = answer["ContentLength"] - len(preface)
            if 0 < n_bytes <= MOST_BYTES and body.read(len(preface)) == preface:
                data: bytes = body.read()
                return data
        with suppress(self._refused):
            self.forget(key)
        return None

    def has(self, key: str) -> bool:
        """Whether there is an object for this key.

        Raises:
            Exception: the service does not answer, or refuses.
        """
        try:
            self._client.head_object(**self._place(key))
        except self._refused as error:
            if _is_absence(error):
                return False
            raise
        return True

    def put(self, key: str, data: bytes) -> None:
        """Keep an embedding.

        Raises:
            Exception: the service does not answer, or refuses.
        """
        # A stream: bytes in one piece would have to be gone within the time that connecting may take.
        body = io.BytesIO(preface_of(key) + data)
        self._client.put_object(**self._place(key), Body=body, ContentType="application/octet-stream")

    def forget(self, key: str) -> None:
        """Throw the object of this key away, if there is one.

        Raises:
            Exception: the service does not answer, or refuses.
        """
        self._client.delete_object(**self._place(key))

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": "/".join((*self._prefix, *place_of(key)))}


def parse_bucket_url(url: str) -> tuple[str, tuple[str, ...]]:
    """Bucket and prefix, in its parts.

    Raises:
        SettingsError: it is no s3://bucket/prefix.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        raise SettingsError(f"SAM2_EMBEDDING_BUCKET={url} must be s3://bucket or s3://bucket/prefix.")
    return parts["bucket"], tuple(part for part in (parts["prefix"] or "").split("/") if part)


def _client() -> tuple[Any, type[Exception]]:
    """A client with short times and few retries, and what it raises where the service answers with an error."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise SettingsError("SAM2_EMBEDDING_BUCKET needs boto3. Install it with `pip install 'sam2-label-studio[s3]'`.") from error
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": 2},
        # Embeddings carry their own checksum, and not everything that speaks S3 knows AWS' newer ones.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", config=config), ClientError
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(f"SAM2_EMBEDDING_BUCKET cannot be used with the AWS settings of this process: {error}") from error


def _is_absence(error: Any) -> bool:
    """Whether the object is what is missing, not the bucket."""
    return error.response.get("Error", {}).get("Code") in {"NoSuchKey", "404", "NotFound"}
