"""jobs.adopt beside a bare sha256 of the same tars, in the same run: python -m tests.benchmarks.adopt [images].

The download is img2dataset's in form: shards of 10,000 JPEGs of about 30 KB with JSON and txt members, and Parquet.
Files are in the page cache for both, so the ratio is that of CPU work; a disk slower than hashing hides it.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.adopt.dataset import open_dataset
from pipeline.adopt.measure import measure
from pipeline.tar import TarMembers

SHARD = 10_000
MEAN_BYTES = 30_000
REPOSITORY = Path(__file__).parent.parent.parent


def make(folder: Path, images: int) -> None:
    generator = np.random.default_rng(0)
    members = TarMembers(0o444)
    noise = generator.bytes(MEAN_BYTES * 4)
    for shard in range(-(-images // SHARD)):
        rows = []
        with (folder / f"{shard:05d}.tar").open("wb", buffering=1 << 20) as tar:
            for place in range(min(SHARD, images - shard * SHARD)):
                number = shard * SHARD + place
                start = int(generator.integers(0, MEAN_BYTES))
                image = b"\xff\xd8\xff" + noise[start : start + int(generator.integers(10_000, 50_000))]
                key = f"{number:09d}"
                row = {
                    "caption": f"a caption of usual length for image {number}",
                    "url": f"https://host{number % 5000}.example/images/{number}.jpg", "key": key,
                    "status": "success", "error_message": None, "width": 256, "height": 256,
                    "original_width": 800, "original_height": 800, "exif": "{}",
                    "sha256": hashlib.sha256(key.encode()).hexdigest(),
                }  # fmt: skip
                rows.append(row)
                caption = str(row["caption"]).encode()
                for ending, data in (("jpg", image), ("json", json.dumps(row).encode()), ("txt", caption)):
                    tar.writelines(members.member(f"{key}.{ending}", data))
            tar.write(bytes(2 * tarfile.BLOCKSIZE))
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        stats = {"count": len(rows), "successes": len(rows)}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))


def bare(folder: Path) -> None:
    """What can be hoped for: every byte of every tar through sha256, on as many threads as adopt takes."""

    def one(path: Path) -> str:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(one, folder.glob("*.tar")))


def tars_alone(folder: Path) -> None:
    """The part of adopt that grows with bytes: tars read, every image hashed, rows judged."""
    dataset = open_dataset(str(folder))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(lambda shard: measure(dataset.store, shard, "safe"), dataset.shards))


def job(*arguments: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "jobs.adopt", *map(str, arguments)], cwd=REPOSITORY, check=True, capture_output=True
    )


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds, children's included."""

    def cpu() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(use.ru_utime + use.ru_stime for use in both)

    started, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - started, cpu() - used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", nargs="?", type=int, default=60_000)
    parser.add_argument("--folder", type=Path, help="where to put the files; default: the temporary folder")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=flags.folder) as temporary:
        folder = Path(temporary) / "download"
        folder.mkdir()
        make(folder, flags.images)
        size = sum(path.stat().st_size for path in folder.glob("*.tar"))
        print(f"{flags.images:,} images, {size / 1e6:,.0f} MB of tars, {os.cpu_count()} CPUs")
        print(f"{'':<20}{'wall s':>8}{'CPU s':>8}{'MB/s':>8}{'MB/CPU s':>10}")
        cases: list[tuple[str, Callable[[], None]]] = [
            ("bare sha256", lambda: bare(folder)),
            ("adopt, tars alone", lambda: tars_alone(folder)),
            ("adopt, in place", lambda: job(folder, "--output", Path(temporary) / "place")),
            ("adopt again", lambda: job(folder, "--output", Path(temporary) / "place")),
            ("adopt --copy", lambda: job(folder, "--output", Path(temporary) / "copy", "--copy")),
            ("bare sha256", lambda: bare(folder)),
        ]
        for name, work in cases:
            wall, cpu = timed(work)
            print(f"{name:<20}{wall:>8.2f}{cpu:>8.2f}{size / 1e6 / wall:>8,.0f}{size / 1e6 / cpu:>10,.0f}", flush=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"peak RSS of a job {peak:,.0f} MB")


if __name__ == "__main__":
    main()
