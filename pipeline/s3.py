"""One S3 bucket over boto3: gets, conditional puts and listings that ride out a store's passing faults."""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow.fs as pafs

from pipeline.errors import InputError, StoreError
from pipeline.s3_files import ObjectFiles

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

TRIES = 10
"""Tries a request gets over 5xx, 409, 429, resets and timeouts; at 20% faults, all fail once in 10 million."""

PART_BYTES = 16 << 20
"""Files larger than this go up in parts of this size, each with its own tries: four are in memory at a time."""

_NONE: frozenset[str] = frozenset()
_GONE = frozenset({"404", "NoSuchKey", "NotFound"})
_REFUSED = frozenset({"412", "PreconditionFailed"})
_FORGOTTEN = frozenset({"404", "NoSuchUpload"})
_PASSING = {"409", "429", "500", "502", "503", "504", "SlowDown", "InternalError", "ServiceUnavailable"}
_PASSING |= {"ConditionalRequestConflict", "RequestTimeout", "OperationAborted"}


class _DeniedError(StoreError):
    """The store, or boto3 before it, says no; asking again would not help."""


class S3Bucket:
    """Every method raises StoreError where all tries failed or the store says no (AccessDenied, NoSuchBucket …)."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def _client(self) -> "S3Client":
        return _client_of(os.getpid(), os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))

    def require(self) -> None:
        """Raise InputError if the bucket is not there or not ours to use."""
        try:
            found = self._ask(lambda: self._client.head_bucket(Bucket=self.name), _GONE)
        except _DeniedError as error:
            raise InputError(f"{error}; check the bucket's name and region, the credentials and their rights") from None
        except ValueError as error:  # an endpoint that is no URL
            raise InputError(f"s3://{self.name}: {error}") from None
        if found is None:
            raise InputError(f"s3://{self.name}: there is no such bucket; create it, or check its name and region")

    def get(self, key: str, byte_range: str | None = None) -> tuple[bytes, str] | None:
        """The object's bytes and ETag, or None where there is none, or none in this range."""
        extra: Any = {"Range": byte_range} if byte_range else {}

        def read() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self.name, Key=key, **extra)
            return answer["Body"].read(), answer["ETag"]

        return self._ask(read, _GONE | {"InvalidRange"})

    def size(self, key: str) -> int | None:
        answer = self._head(key)
        return answer["ContentLength"] if answer else None

    def tag(self, key: str) -> str | None:
        """The object's ETag."""
        answer = self._head(key)
        return answer["ETag"] if answer else None

    def _head(self, key: str) -> Any:
        return self._ask(partial(self._client.head_object, Bucket=self.name, Key=key), _GONE)

    def put(self, key: str, data: bytes, if_none_match: str | None = None, if_match: str | None = None) -> bool:
        """False where the condition does not hold (412), also after a try of ours whose reply was lost."""
        condition = {"IfNoneMatch": if_none_match, "IfMatch": if_match}
        extra: Any = {name: value for name, value in condition.items() if value}
        call = partial(self._client.put_object, Bucket=self.name, Key=key, Body=data, **extra)
        return self._ask(call, _REFUSED | _GONE if extra else _NONE) is not None

    def delete(self, key: str, if_match: str | None = None) -> bool:
        """False where the object has another ETag than `if_match`."""
        extra: Any = {"IfMatch": if_match} if if_match else {}
        call = partial(self._client.delete_object, Bucket=self.name, Key=key, **extra)
        return self._ask(call, _REFUSED | _GONE) is not None or self.size(key) is None

    def upload(self, local: Path, key: str) -> None:
        """Upload a file by one PUT or a completed multipart: nothing is visible before its end."""
        size = local.stat().st_size
        if size <= PART_BYTES:
            self.put(key, local.read_bytes())
            return
        part = max(PART_BYTES, -(-size // 10_000))  # S3 takes at most 10,000 parts
        for _ in range(TRIES):
            if self._multipart(local, key, range(0, size, part)):
                return
        raise StoreError(f"s3://{self.name}/{key}: the store forgot the upload {TRIES} times")

    def _multipart(self, local: Path, key: str, parts: range) -> bool:
        """False where the store no longer knows the upload: it was aborted, or done and the reply was lost."""
        where: Any = {"Bucket": self.name, "Key": key}
        where["UploadId"] = self._must(partial(self._client.create_multipart_upload, **where))["UploadId"]

        def send(number: int) -> Any:
            with local.open("rb") as file:
                file.seek(parts[number])
                body = file.read(parts.step)
            return self._ask(partial(self._client.upload_part, **where, PartNumber=number + 1, Body=body), _FORGOTTEN)

        try:
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(send, range(len(parts))))
            if None in answers:
                return False
            done: Any = [{"ETag": answer["ETag"], "PartNumber": number} for number, answer in enumerate(answers, 1)]
            call = partial(self._client.complete_multipart_upload, **where, MultipartUpload={"Parts": done})
            return self._ask(call, _FORGOTTEN) is not None
        except BaseException:
            with contextlib.suppress(OSError):  # left there it costs storage, though no reader sees it
                self.abort(key, where["UploadId"])
            raise

    def abort(self, key: str, upload: str) -> None:
        call = partial(self._client.abort_multipart_upload, Bucket=self.name, Key=key, UploadId=upload)
        self._ask(call, _FORGOTTEN)

    def uploads(self, prefix: str) -> Iterator[tuple[str, str, int]]:
        """(key, upload id, bytes so far) of every upload under way below a prefix, or left by a killed process."""
        token: Any = {}
        while token is not None:
            page = self._must(partial(self._client.list_multipart_uploads, Bucket=self.name, Prefix=prefix, **token))
            for upload in page.get("Uploads", []):
                where: Any = {"Bucket": self.name, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                parts: Any = self._ask(partial(self._client.list_parts, **where), _FORGOTTEN) or {}
                yield upload["Key"], upload["UploadId"], sum(part["Size"] for part in parts.get("Parts", []))
            token = {
                "KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]
            } if page.get("IsTruncated") else None  # fmt: skip

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((key, size) for key, size, _ in self.list_tagged(prefix))

    def list_tagged(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """(key, size, ETag) of every object below a prefix."""
        for page in self._pages(Prefix=prefix):
            for item in page.get("Contents", []):
                yield item["Key"], item["Size"], item["ETag"]

    def folders(self, prefix: str) -> Iterator[str]:
        for page in self._pages(Prefix=prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", []):
                yield item["Prefix"][len(prefix) :].rstrip("/")

    def _pages(self, **wanted: Any) -> Iterator[Any]:
        token: Any = {}
        while token is not None:
            page = self._must(partial(self._client.list_objects_v2, Bucket=self.name, **wanted, **token))
            yield page
            token = {"ContinuationToken": page["NextContinuationToken"]} if page["IsTruncated"] else None

    def versioned(self) -> bool | None:
        """Whether the bucket keeps old versions of objects; None where we may not ask."""
        try:
            answer = self._must(partial(self._client.get_bucket_versioning, Bucket=self.name))
        except StoreError:
            return None
        return answer.get("Status") in ("Enabled", "Suspended")

    def arrow(self) -> pafs.FileSystem:
        """The bucket as a file system that Arrow reads from, paths being `bucket/key`."""
        return pafs.PyFileSystem(ObjectFiles(self))

    def _must(self, call: Callable[[], T]) -> T:
        answer = self._ask(call, _NONE)
        assert answer is not None
        return answer

    def _ask(self, call: Callable[[], T], expected: frozenset[str]) -> T | None:
        """Call until it answers: passing faults are asked again with growing, jittered pauses.

        None where the store answers with one of the `expected` error codes.
        """
        from botocore import exceptions as botocore
        from botocore.parsers import ResponseParserError

        for attempt in range(TRIES):
            if attempt:
                time.sleep(random.uniform(0.5, 1.0) * min(0.05 * 2**attempt, 5.0))
            try:
                return call()
            except botocore.ClientError as error:
                code = error.response["Error"]["Code"]
                status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
                if code in expected:
                    return None
                if code not in _PASSING and status not in _PASSING:
                    raise _DeniedError(f"s3://{self.name}: {error}") from None
                fault: Exception = error
            except (botocore.HTTPClientError, botocore.ConnectionError, ResponseParserError) as error:
                fault = error
            except (botocore.IncompleteReadError, botocore.FlexibleChecksumError) as error:  # a cut answer
                fault = error
            except botocore.BotoCoreError as error:  # no credentials, a name that is none …
                raise _DeniedError(f"s3://{self.name}: {' '.join(str(error).split())}") from None
        raise StoreError(f"s3://{self.name}: {TRIES} tries failed, the last with: {fault}")


@cache
def _client_of(pid: int, endpoint: str | None) -> "S3Client":
    """One client a process (a fork must not share its parent's sockets) and endpoint; safe to use from many threads."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30, max_pool_connections=64)
    return boto3.session.Session().client("s3", config=config, endpoint_url=endpoint)
