"""Memory that decode processes and the encoder's process share: a few batches of pixels, and how far each image is."""

import ctypes
import mmap
import os
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

WAITING: Final = 0
UNDER_WAY: Final = 1
DONE: Final = 2
FAILED: Final = 3

_PAGE: Final = mmap.PAGESIZE


@dataclass(frozen=True)
class Shape:
    """`buffers` batches of `batch` images of `height` x `width` RGB pixels."""

    buffers: int
    batch: int
    height: int
    width: int

    @property
    def slots(self) -> int:
        return self.buffers * self.batch

    @property
    def head(self) -> int:
        """Bytes before the first pixel."""
        return -(-self.slots // _PAGE) * _PAGE

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.head + self.slots * self.height * self.width * 3

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Ring:
    """One mapping of the shared memory, which is gone with the last process that maps it.

    `pixels`: uint8 [buffers, batch, height, width, 3]. `status`: uint8 [slots], WAITING to FAILED, where slot
    b·batch + i is image i of buffer b; a decode process says UNDER_WAY before it touches an image.
    """

    def __init__(self, shape: Shape, fd: int | None = None) -> None:
        """`fd`: that of the process that made it; without one, it is made here."""
        self.shape = shape
        self.fd = os.memfd_create("pairmill-ring") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, shape.size)
        self._map = mmap.mmap(self.fd, shape.size)
        whole = np.frombuffer(self._map, np.uint8)
        self.status: NDArray[np.uint8] = whole[: shape.slots]
        pixels = whole[shape.head :].reshape(shape.buffers, shape.batch, shape.height, shape.width, 3)
        self.pixels: NDArray[np.uint8] = pixels

    @property
    def address(self) -> int:
        """Of its first byte in this process, for a driver that pins memory."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def close(self) -> None:
        """Let go of the memory's name; the mapping goes with the last array that shows it."""
        os.close(self.fd)
