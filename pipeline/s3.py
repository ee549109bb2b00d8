"""One S3 bucket over boto3: gets, conditional puts and listings that ride out a store's passing faults."""

import os
import random
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow.fs as pafs

from pipeline.errors import InputError, StoreError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

TRIES = 10
"""Tries a request gets over 5xx, 409, 429, resets and timeouts; at 20% faults, all fail once in 10 million."""

_GONE = {"404", "NoSuchKey", "NotFound"}
_PASSING = {"409", "429", "500", "502", "503", "504", "SlowDown", "InternalError", "ServiceUnavailable"}
_PASSING |= {"ConditionalRequestConflict", "RequestTimeout", "OperationAborted"}


class S3Bucket:
    """Pickles by name: every process opens its own client."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[type["S3Bucket"], tuple[str]]:
        return S3Bucket, (self.name,)

    @cached_property
    def _client(self) -> "S3Client":
        import boto3
        from botocore.config import Config

        config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30, max_pool_connections=64)
        return boto3.client("s3", config=config)

    def require(self) -> None:
        """Raise InputError if the bucket is not there or not ours to use."""
        from botocore.exceptions import ClientError, NoCredentialsError

        try:
            self._ask(lambda: self._client.head_bucket(Bucket=self.name))
        except NoCredentialsError:
            raise InputError(f"s3://{self.name}: no AWS credentials in the environment") from None
        except ClientError as error:
            code = error.response["Error"]["Code"]
            raise InputError(
                f"s3://{self.name}: the store answers {code}; check the bucket's name, the region and credentials"
            ) from None

    def get(self, key: str, byte_range: str | None = None) -> tuple[bytes, str] | None:
        """The object's bytes and ETag, or None where there is none."""
        extra: Any = {"Range": byte_range} if byte_range else {}

        def read() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self.name, Key=key, **extra)
            return answer["Body"].read(), answer["ETag"]

        return self._found(read)

    def size(self, key: str) -> int | None:
        answer = self._found(lambda: self._client.head_object(Bucket=self.name, Key=key))
        return answer["ContentLength"] if answer else None

    def put(self, key: str, data: bytes, if_none_match: str | None = None, if_match: str | None = None) -> bool:
        """False where the condition does not hold (412), also after a try of ours whose reply was lost."""
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": if_none_match, "IfMatch": if_match}
        extra: Any = {name: value for name, value in condition.items() if value}
        try:
            self._ask(lambda: self._client.put_object(Bucket=self.name, Key=key, Body=data, **extra))
        except ClientError as error:
            if error.response["Error"]["Code"] in ("412", "PreconditionFailed", *_GONE):
                return False
            raise
        return True

    def upload(self, local: Path, key: str) -> None:
        """Upload a file by one PUT or a completed multipart: nothing is visible before its end."""
        self._ask(lambda: self._client.upload_file(str(local), self.name, key))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        for page in self._pages(Prefix=prefix):
            for item in page.get("Contents", []):
                yield item["Key"], item["Size"]

    def folders(self, prefix: str) -> Iterator[str]:
        for page in self._pages(Prefix=prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", []):
                yield item["Prefix"][len(prefix) :].rstrip("/")

    def _pages(self, **wanted: Any) -> Iterator[Any]:
        token: Any = {}
        while token is not None:
            page = self._ask(partial(self._client.list_objects_v2, Bucket=self.name, **wanted, **token))
            yield page
            token = {"ContinuationToken": page["NextContinuationToken"]} if page["IsTruncated"] else None

    def delete(self, key: str) -> None:
        self._ask(lambda: self._client.delete_object(Bucket=self.name, Key=key))

    def arrow(self) -> pafs.FileSystem:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return pafs.S3FileSystem(
            endpoint_override=endpoint,
            region=self._client.meta.region_name,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        )

    def _found(self, call: Callable[[], T]) -> T | None:
        from botocore.exceptions import ClientError

        try:
            return self._ask(call)
        except ClientError as error:
            if error.response["Error"]["Code"] in _GONE:
                return None
            raise

    def _ask(self, call: Callable[[], T]) -> T:
        """Call until it answers: passing faults are asked again with growing, jittered pauses."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
            IncompleteReadError,
            ResponseStreamingError,
        )

        for attempt in range(TRIES):
            try:
                return call()
            except ClientError as error:
                code = error.response["Error"]["Code"]
                status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
                if code not in _PASSING and status not in _PASSING:
                    raise
                fault: BaseException = error
            except (
                ConnectionError,
                HTTPClientError,
                IncompleteReadError,
                ResponseStreamingError,
                OSError,
            ) as error:
                fault = error
            except S3UploadFailedError as error:
                fault = error
            except BotoCoreError:
                raise
            time.sleep(random.uniform(0.5, 1.0) * min(0.05 * 2**attempt, 5.0))
        raise StoreError(f"s3://{self.name}: {TRIES} tries failed, the last with: {fault}")
