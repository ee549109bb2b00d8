"""Frame sizes that an AV1 stream itself declares (AV1 Bitstream specification, 5.3 to 5.5).

An AVIF file states its size in a box that decoders check too late: a lie there would cost gigabytes.
"""

from collections.abc import Iterator
from typing import Final

MAX_OBUS: Final = 10_000
_SEQUENCE_HEADER: Final = 1


def frame_sizes(obus: bytes) -> Iterator[tuple[int, int]]:
    """(largest width, largest height) of every sequence header among the OBUs.

    Raises ValueError or IndexError when they make no sense.
    """
    at = 0
    for _ in range(MAX_OBUS):
        if at >= len(obus):
            return
        head = obus[at]
        at += 2 if head & 4 else 1
        size = len(obus) - at
        if head & 2:
            size, at = _leb128(obus, at)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            yield _sequence_header(obus[at : at + size])
        at += size
    raise ValueError(f"more than {MAX_OBUS} OBUs")


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for number in range(8):
        byte = data[at + number]
        value |= (byte & 127) << 7 * number
        if byte < 128:
            return value, at + number + 1
    raise ValueError("leb128 beyond 8 bytes")


class _Bits:
    def __init__(self, data: bytes) -> None:
        # The sizes come within the first 600 bytes whatever the 32 operating points say.
        self.left = 8 * min(len(data), 600)
        self.value = int.from_bytes(data[:600], "big")

    def __call__(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("sequence header is cut short")
        return self.value >> self.left & (1 << count) - 1


def _sequence_header(data: bytes) -> tuple[int, int]:
    bits = _Bits(data)
    bits(4)  # profile, still picture
    if bits(1):
        bits(5)  # reduced header: the level alone
    else:
        delay = _timing(bits) if bits(1) else 0
        _operating_points(bits, delay)
    wide, high = bits(4) + 1, bits(4) + 1
    return bits(wide) + 1, bits(high) + 1


def _timing(bits: _Bits) -> int:
    """Length in bits of a buffer delay, 0 without a decoder model."""
    bits(64)
    if bits(1):  # equal picture interval: a uvlc follows
        zeros = 0
        while not bits(1):
            zeros += 1
        bits(zeros if zeros < 32 else 0)
    if not bits(1):
        return 0
    delay = bits(5) + 1
    bits(42)
    return delay


def _operating_points(bits: _Bits, delay: int) -> None:
    display_delay = bits(1)
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:
            bits(1)
        if delay and bits(1):
            bits(2 * delay + 1)
        if display_delay and bits(1):
            bits(4)
