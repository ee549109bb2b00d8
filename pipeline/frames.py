"""Frames over the pipes to child processes: the sizes of a JSON object and of raw bytes, then both."""

import json
import struct
from typing import IO, Any, Final

_SIZES: Final = struct.Struct(">II")
_LARGEST: Final = 1 << 30


def send(pipe: IO[bytes], message: dict[str, Any], data: bytes = b"") -> None:
    head = json.dumps(message).encode()
    pipe.write(_SIZES.pack(len(head), len(data)) + head)
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Raises EOFError at the end of the pipe, ValueError for what is no frame."""
    head_size, data_size = _SIZES.unpack(_exactly(pipe, _SIZES.size))
    if head_size + data_size > _LARGEST:
        raise ValueError("frame too large")
    message = json.loads(_exactly(pipe, head_size))
    if not isinstance(message, dict):
        raise ValueError("frame is no object")
    return message, _exactly(pipe, data_size)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
