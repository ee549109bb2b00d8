"""Work over many items in threads, with bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = max(2, min(8, os.cpu_count() or 2))

T = TypeVar("T")
U = TypeVar("U")


def ordered(pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Like pool.map, but only a few items ahead, so that results do not pile up in memory."""
    ahead: deque[Future[U]] = deque()
    for item in items:
        ahead.append(pool.submit(work, item))
        if len(ahead) > THREADS:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
