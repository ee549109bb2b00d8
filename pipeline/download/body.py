"""Bodies within bounds: caps on bytes before and after decoding, and on all large bodies together."""

import asyncio
import zlib
from collections import deque
from collections.abc import Mapping

from aiohttp import ClientResponse

from pipeline.download.failure import Failure
from pipeline.download.hosts import Host
from pipeline.download.places import FIRST, Places

FREE_BYTES = 1024 * 1024
"""A body may grow to this without asking; with what aiohttp buffers, 256 fetches at a time make about 370 MiB."""
LARGE_BYTES = 300 * 1024 * 1024
"""What larger bodies may take together: six of the default max_bytes."""
RATE_FROM_S = 3.0
"""A body's rate is judged from this age on."""


class ByteBudget:
    """Bytes lent to large bodies, first come first served; who waits holds none."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        if not self._waiting and size <= self._left:
            self._left -= size
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            lent = future.done() and not future.cancelled()
            future.cancel()
            self.give(size if lent else 0)
            raise

    def give(self, size: int) -> None:
        self._left += size
        while self._waiting and self._waiting[0][0] <= self._left:
            wanted, future = self._waiting.popleft()
            if not future.done():
                self._left -= wanted
                future.set_result(None)


class Loan:
    """What one fetch has borrowed; given back when its body is no longer in use."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._size = 0

    async def borrow(self, size: int) -> None:
        size = min(size, self._budget.size)
        await self._budget.take(size)
        self._size = size

    def settle(self, size: int = 0) -> None:
        """Keep `size` bytes of what was borrowed, give back the rest."""
        keep = min(size, self._size)
        if keep != self._size:
            self._budget.give(self._size - keep)
            self._size = keep


class Hold:
    """What one fetch keeps from others: a place among the requests, and bytes of memory."""

    def __init__(self, places: Places, budget: ByteBudget, turn: int = FIRST) -> None:
        self._places = places
        self._turn = turn
        self._held = False
        self.loan = Loan(budget)

    async def enter(self, host: Host) -> None:
        """Wait for a place. Hosts that have yet to answer go before all others: what stalls begins soonest."""
        await self._places.acquire(lambda: self._turn if host.answers else FIRST)
        self._held = True

    def release(self) -> None:
        self.loan.settle()
        if self._held:
            self._held = False
            self._places.release()


async def read_body(
    response: ClientResponse, limit: int, min_rate: int, loan: Loan, scope: asyncio.Timeout, cut: bool = False
) -> bytes:
    """The body, content-decoded. Waiting for a loan does not count against the deadline of `scope`.

    Raises Failure (`too_large`, or `timeout` below `min_rate` bytes a second); with `cut`, what is beyond `limit` is
    left unread instead.
    """
    length = response.content_length
    if length is not None and length > limit and not cut:
        raise Failure("too_large", f"Content-Length {length}, at most {limit}")
    encodings = content_encodings(response.headers)
    if encodings:
        await _borrow(loan, 2 * limit, scope)
    clock = asyncio.get_running_loop().time
    began = clock()
    chunks: list[bytes] = []
    size = 0
    asked = bool(encodings)
    stream = response.content
    while chunk := await stream.readany():
        size += len(chunk)
        chunks.append(chunk)
        if size > limit:
            if cut:
                break
            raise Failure("too_large", f"more than {limit} bytes")
        if size > FREE_BYTES and not asked:
            asked = True
            began += await _borrow(loan, limit if length is None else length, scope)
        elapsed = clock() - began
        if elapsed > RATE_FROM_S and size < min_rate * elapsed:
            raise Failure("timeout", f"{size} bytes in {elapsed:.1f} s, below {min_rate} bytes a second", retry=True)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    chunks.clear()
    if cut:
        body = body[:limit]
    for encoding in encodings:
        body = await asyncio.to_thread(decoded, body, encoding, limit, cut)
    if asked:
        loan.settle(len(body) if len(body) > FREE_BYTES else 0)
    return body


async def _borrow(loan: Loan, size: int, scope: asyncio.Timeout) -> float:
    """Borrow with the clock stopped; the seconds that it took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    until = scope.when()
    scope.reschedule(None)
    await loan.borrow(size)
    waited = clock() - began
    scope.reschedule(None if until is None else until + waited)
    return waited


def content_encodings(headers: Mapping[str, str]) -> list[str]:
    """gzip and deflate among the codings applied, the last first; others name no coding we asked for or could undo."""
    value = headers.get("Content-Encoding")
    if not value:
        return []
    names = [name.strip().lower().removeprefix("x-") for name in value.split(",")]
    return [name for name in reversed(names) if name in ("gzip", "deflate")][:2]


def decoded(body: bytes, encoding: str, limit: int, cut: bool = False) -> bytes:
    """Undo one content coding, to at most `limit` bytes (more: Failure `too_large`, or cut). A body that is not
    so coded, whatever its header says, is returned as it is."""
    if encoding == "gzip" and body[:2] != b"\x1f\x8b":
        return body
    for window in (31,) if encoding == "gzip" else (15, -15):
        inflater = zlib.decompressobj(window)
        try:
            plain = inflater.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(plain) > limit:
            if cut:
                return plain[:limit]
            raise Failure("too_large", f"more than {limit} bytes after {encoding}")
        if not inflater.eof:
            raise Failure("truncated", f"{encoding} stream ends early")
        return plain
    if encoding == "deflate":
        return body
    raise Failure("truncated", f"{encoding} stream is broken")
