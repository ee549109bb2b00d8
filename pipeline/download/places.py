"""Places among a worker's requests: where they are short, the oldest unit goes first."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

Turn = Callable[[], int]

FIRST = -1
"""A turn before those of all units."""


class Places:
    """A semaphore whose waiters go in by their turn, the lowest first, and among equals in order of arrival."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, asyncio.Future[None], Turn]] = []
        self._arrivals = count()

    async def acquire(self, turn: Turn) -> None:
        """Wait for a place. `turn` is asked again before the place is given: it may have become a later one."""
        if self._free:
            self._free -= 1
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (turn(), next(self._arrivals), future, turn))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release()  # it was ours already
            raise

    def release(self) -> None:
        while self._waiting:
            was, arrived, future, turn = heapq.heappop(self._waiting)
            if future.done():
                continue
            if (now := turn()) > was:
                heapq.heappush(self._waiting, (now, arrived, future, turn))
                continue
            future.set_result(None)
            return
        self._free += 1
