"""Objects in S3 as files that Arrow reads, every range asked for by our own client.

Arrow's own S3 file system gives up where a connection is reset in the middle of an answer ("Failed to flush response
stream"); ours asks again.
"""

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

if TYPE_CHECKING:
    from pipeline.s3 import S3Bucket

STREAM_BYTES = 8 << 20
"""Asked for at a time where a whole object is read from its start."""


class ObjectFiles(pafs.FileSystemHandler):  # type: ignore[misc]
    """Read-only files of one bucket; paths are `bucket/key`."""

    def __init__(self, bucket: "S3Bucket") -> None:
        self._bucket = bucket

    def get_type_name(self) -> str:
        return "objects"

    def normalize_path(self, path: str) -> str:
        return path

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._open(path), mode="r")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(io.BufferedReader(self._open(path), STREAM_BYTES), mode="r")

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """The objects below a folder; folders themselves are not named."""
        folder = f"{self._key(selector.base_dir).rstrip('/')}/"
        return [
            pafs.FileInfo(f"{self._bucket.name}/{key}", pafs.FileType.File, size=size)
            for key, size in self._bucket.list(folder)
            if selector.recursive or "/" not in key.removeprefix(folder)
        ]

    def _info(self, path: str) -> pafs.FileInfo:
        size = self._bucket.size(self._key(path))
        if size is not None:
            return pafs.FileInfo(path, pafs.FileType.File, size=size)
        below = next(self._bucket.list(f"{self._key(path).rstrip('/')}/"), None)
        return pafs.FileInfo(path, pafs.FileType.Directory if below else pafs.FileType.NotFound)

    def _open(self, path: str) -> "_Object":
        key = self._key(path)
        size = self._bucket.size(key)
        if size is None:
            raise FileNotFoundError(f"s3://{path}: there is no such object")
        return _Object(self._bucket, key, size)

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._bucket.name}/")

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("objects are written by pipeline.storage")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _refuse
    open_output_stream = open_append_stream = _refuse


class _Object(io.RawIOBase):
    """One object, read range by range."""

    def __init__(self, bucket: "S3Bucket", key: str, size: int) -> None:
        self._bucket, self._key, self._size = bucket, key, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._range(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        return self._range(self._size - self._at if size is None or size < 0 else size)

    def _range(self, size: int) -> bytes:
        end = min(self._at + size, self._size)
        if end <= self._at:
            return b""
        found = self._bucket.get(self._key, f"bytes={self._at}-{end - 1}")
        if found is None:
            raise FileNotFoundError(f"s3://{self._bucket.name}/{self._key}: the object is gone")
        self._at += len(found[0])
        return found[0]
