"""A decode process: pool members in, pixels in the shared ring out. Reads one task ahead of the one it decodes.

Its memory is limited and each image has a time, so that an image that breaks a decoder ends this process and no other.
"""

import contextlib
import os
import pickle
import queue
import resource
import signal
import threading
import time
from contextlib import closing
from typing import IO, Any, Final

import pyarrow as pa

from pipeline.embed.child import frames_of_parent
from pipeline.embed.decode import decode_images
from pipeline.embed.ring import DONE, FAILED, UNDER_WAY, Ring, Shape
from pipeline.errors import StoreError
from pipeline.faults import fault_point
from pipeline.frames import receive, send
from pipeline.images.errors import ImageError
from pipeline.shard.pool import PoolReader
from pipeline.start import start_lean
from pipeline.storage import open_store

MEMORY_BYTES: Final = 3 << 30
"""Address space beyond what the process starts with: one image of decode.MAX_PIXELS, several times over."""
IMAGE_SECONDS: Final = 60
"""Wall time for one image; then SIGALRM ends the process, stuck inside a decoder as it may be."""

Read = tuple[dict[str, Any], list[bytes], float]
"""A task, its images and the CPU seconds that reading them took."""


def main() -> None:
    start_lean()
    requests, replies = frames_of_parent()
    first, data = receive(requests)
    preprocesses = pickle.loads(data)  # our own parent's
    rings = [Ring(Shape(**shape), fd) for shape, fd in zip(first["rings"], first["fds"], strict=True)]
    pixels = [ring.pixels.reshape(-1, *ring.pixels.shape[2:]) for ring in rings]
    status = rings[0].status
    _limit_memory()
    send(replies, {})
    for task, images, read_s in _reading_ahead(requests, first["root"]):
        if "error" in task:
            send(replies, task)
            continue
        start = time.thread_time()
        failed: dict[str, list[str]] = {}
        for slot, digest, image in zip(task["slots"], task["pool_sha256"], images, strict=True):
            status[slot] = UNDER_WAY
            signal.alarm(IMAGE_SECONDS)
            fault_point("decode", digest)
            try:
                for own, made in zip(pixels, decode_images(image, preprocesses, first["scaled"]), strict=True):
                    own[slot] = made
                status[slot] = DONE
            except ImageError as error:
                pixels[0][slot] = 0
                failed[str(slot)] = [error.reason, error.detail]
                status[slot] = FAILED
        signal.alarm(0)
        send(replies, {"failed": failed, "read": read_s, "decode": time.thread_time() - start})


def _reading_ahead(requests: IO[bytes], root: str) -> Any:
    """The tasks with their images, until the parent has no more; one more is read while one is decoded."""
    ahead: queue.Queue[Read | None] = queue.Queue(1)

    def read() -> None:
        with contextlib.suppress(EOFError), closing(PoolReader(open_store(root))) as pool:
            while True:
                task, _ = receive(requests)
                start = time.thread_time()
                try:
                    images = _images(pool, task)
                except (StoreError, OSError) as error:
                    task, images = {"error": str(error), "kind": type(error).__name__}, []
                ahead.put((task, images, time.thread_time() - start))
        ahead.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (item := ahead.get()) is not None:
        yield item


def _images(pool: PoolReader, task: dict[str, Any]) -> list[bytes]:
    names = ("uid", "pool_file", "pool_offset", "pool_size", "pool_sha256")
    table = pa.table({name: task[name] for name in names})
    return [image for _, block in pool.blocks(table) for image in block]


def _limit_memory() -> None:
    with open("/proc/self/statm") as statm:
        in_use = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):
        main()
    os._exit(0)  # the reading thread may be waiting for a store
