"""CPU ms an image by part, in one process without Ray: fetch, decode, resize, encode, hash, write.

    python tests/benchmarks/parts.py [--case http] [--images 2000]

Fetch is the process's CPU time while bodies are fetched and thrown away, robots.txt and consent included; the others
are one thread's CPU time around the same calls that the worker makes. Ray's part is what `download.py` shows for the
whole tree of processes, less these.
"""

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from photo_web import PhotoServer, Web, photos  # noqa: E402

from pipeline.download.fetch import Fetcher  # noqa: E402
from pipeline.download.pool import PoolWriter  # noqa: E402
from pipeline.download.rows import Outcomes, by_host, targets  # noqa: E402
from pipeline.images.decode import decode  # noqa: E402
from pipeline.images.encode import encode  # noqa: E402
from pipeline.images.header import read_header  # noqa: E402
from pipeline.images.process import ImageProcessor  # noqa: E402
from pipeline.images.resize import INTERPOLATION, resize, target_size  # noqa: E402
from schemas.recipe import Download  # noqa: E402
from schemas.tables import PAIRS  # noqa: E402

UNIT = 250


class Clock:
    """Adds up CPU seconds of the calling thread by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def time(self, part: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.thread_time()
        try:
            return call(*arguments)
        finally:
            self.spent[part] = self.spent.get(part, 0.0) + time.thread_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["http", "https"], default="http")
    parser.add_argument("--images", type=int, default=2000)
    flags = parser.parse_args()
    clock = Clock()
    with PhotoServer(Web(flags.images, max(1, flags.images // 18), tls=flags.case == "https")) as server:
        ca_file = str(server.ca_file) if server.web.tls else None
        settings = Download(allow_addresses=["127.64.0.0/10"], ca_file=ca_file)
        fetched = asyncio.run(fetch_all(settings, server.urls(), clock))
    if fetched != flags.images:
        raise SystemExit(f"{fetched} of {flags.images} fetched")
    bodies = [photos()[number % len(photos())] for number in range(min(300, flags.images))]
    images = pixels(settings, bodies, clock)
    write(images, clock)
    share = {"fetch": flags.images}
    print(f"| part ({flags.case}) | CPU ms an image |\n| --- | --- |")
    total = 0.0
    for part, seconds in clock.spent.items():
        each = 1000 * seconds / share.get(part, len(bodies))
        total += 0 if part.startswith("(") else each
        print(f"| {part} | {each:.2f} |")
    print(f"| sum | {total:.2f} |")
    return 0


async def fetch_all(settings: Download, urls: list[str], clock: Clock) -> int:
    """Hosts at once, each over its allowed connections, as the worker does it."""
    pairs = pa.table({"fetch_url": urls})
    done = 0

    async def drain(fetcher: Fetcher, queue: list[Any]) -> None:
        nonlocal done
        while queue:
            async with fetcher.fetch(queue.pop().fetch_url) as fetched:
                done += fetched.reason is None

    async with Fetcher(settings) as fetcher, asyncio.TaskGroup() as group:
        start = time.process_time()
        lines = [
            group.create_task(drain(fetcher, queue))
            for _, queue in by_host(targets(pairs), lambda url: urlsplit(url).hostname or "")
            for _ in range(min(settings.per_host.connections, len(queue)))
        ]
        await asyncio.gather(*lines)
        clock.spent["fetch"] = time.process_time() - start
    return done


def pixels(settings: Download, bodies: list[bytes], clock: Clock) -> list[Any]:
    processor = ImageProcessor(settings)
    images = []
    for body in bodies:
        images.append(clock.time("(image, all of the processor)", processor, body))
        header = clock.time("header", read_header, body, settings.max_frames)
        target = target_size(header.width, header.height, settings)
        assert target
        least = (target.width, target.height)
        made, scale = clock.time("decode", decode, body, header, least, settings.background)
        how = INTERPOLATION["linear" if scale > 1 else "area"]
        made = clock.time("resize", resize, made, target, how)
        clock.time("encode", encode, made, settings)
        for kind in ("sha256", *settings.compute_hash[1:]):
            clock.time("hash", lambda kind=kind, body=body: hashlib.new(kind, body, usedforsecurity=False).hexdigest())
    return images


def write(images: list[Any], clock: Clock) -> None:
    """Pool members and the unit's tables, in units of 250 rows."""
    with tempfile.TemporaryDirectory() as scratch:
        for first in range(0, len(images), UNIT):
            part = images[first : first + UNIT]
            clock.time("write", _write_unit, part, first, Path(scratch))


def _write_unit(images: list[Any], first: int, folder: Path) -> None:
    rows = [
        {"uid": f"{first + row:032x}", "url": f"http://127.64.1.1/{row}", "fetch_url": f"http://127.64.1.1/{row}",
         "text": "a photo", "caption": "a photo", "source": "list.parquet", "source_row": row, "batch": "0000"}
        for row in range(len(images))
    ]  # fmt: skip
    made = Outcomes(pa.Table.from_pylist(rows, schema=PAIRS), "0000-0000000", 0)
    pool = PoolWriter(folder / "pool.tar")
    for row, image in enumerate(images):
        offset, size, digest = pool.add(f"{first + row:032x}.jpg", image.data)
        values = {"pool_offset": offset, "pool_size": size, "pool_sha256": digest, "format": image.format}
        made.set(row, None, values | {"width": image.width, "height": image.height})
    pool.close()
    pq.write_table(made.table(), folder / "outcomes.parquet", compression="zstd")
    hashlib.sha256((folder / "pool.tar").read_bytes()).hexdigest()  # as the commit does


if __name__ == "__main__":
    sys.exit(main())
