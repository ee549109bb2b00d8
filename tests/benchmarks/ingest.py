"""Ingest of generated rows, beside a bare read and sort of the same Parquet file by DuckDB and polars.

python tests/benchmarks/ingest.py [ROWS]        10 million rows unless told; prints seconds, rows/s and peak RSS.
Floors (issue 2): 10 million rows in under 5 minutes and 4 GB, driver and workers together, Ray's daemons aside.
Rows are spread over hosts as on the web (Zipf), one in twenty is a duplicate, one in a hundred cannot be fetched.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 500_000
WORDS = np.array(
    [
        *("a", "of", "the", "and", "in", "with", "for", "on", "photo", "red", "old", "small", "cat", "house", "tree"),
        *("water", "green", "view", "from", "new", "vector", "stock", "black", "white", "image", "beach", "flower"),
        *("mountain", "woman", "man", "city", "night", "logo", "dress", "wedding", "kitchen", "modern", "street"),
    ]
)


def generate(path: Path, rows: int) -> None:
    """url and caption as string columns, row groups of 500,000 rows."""
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    random = np.random.default_rng(7)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            hosts = np.minimum(random.zipf(1.35, count), 2_000_000)
            images = random.integers(0, 2**40, count)
            picks = random.integers(0, len(WORDS), (count, 9))
            captions = [" ".join(line) for line in WORDS[picks]]
            urls = [
                f"https://cdn{h % 7}.host-{h}.example.com/media/{i:010x}/photo.jpg"
                for h, i in zip(hosts, images, strict=True)
            ]
            for copy in random.integers(1, count, count // 20):
                urls[copy], captions[copy] = urls[copy - 1], captions[copy - 1]
            for broken in random.integers(0, count, count // 100):
                urls[broken] = f"/relative/{broken}.jpg"
            writer.write_table(pa.table({"url": urls, "caption": captions}, schema))


class PeakMemory(threading.Thread):
    """Peak of the summed RSS in bytes, and CPU seconds, of a process and the Ray workers below it (Linux's /proc)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.peak = 0
        self._cpu: dict[int, float] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.25):
            pids = [self._pid, *workers_below(self._pid)]
            self.peak = max(self.peak, sum(map(resident, pids)))
            self._cpu.update((pid, max(cpu_seconds(pid), self._cpu.get(pid, 0.0))) for pid in pids)

    def cpu(self) -> float:
        return sum(self._cpu.values())


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def workers_below(pid: int) -> list[int]:
    parents: dict[int, tuple[int, str]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            command = status.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):
            continue
        parents[int(status.parent.name)] = (int(fields["PPid"]), command)
    found = []
    for child, (parent, command) in parents.items():
        while parent not in (0, 1, pid):
            parent = parents.get(parent, (0, ""))[0]
        if parent == pid and (command.startswith("ray::") or "default_worker.py" in command):
            found.append(child)
    return found


OURS = """
import sys
from pipeline.root import read_batches
from pipeline.ingest.stage import make_batches, run_ingest
from pipeline.stop import StopFlag
from pipeline.storage import open_store
from pipeline.units import StageFolder
from schemas.recipe import Ingest, Recipe, fingerprint
import logging, time
logging.basicConfig(level=logging.INFO)
root, path = sys.argv[1:]
store, recipe = open_store(root), Recipe(ingest=Ingest(lang_model=LANG_MODEL))
begun = time.monotonic()
make_batches(store, recipe, [path], None, None, "bench")
print(f"  batch made after {time.monotonic() - begun:.1f} s", flush=True)
folder = StageFolder(store, "ingest", fingerprint(recipe, "ingest", {}))
batches = list(read_batches(store).values())
run_ingest(store, recipe, batches, folder, "bench", StopFlag(root, "bench"), lambda result: None)
records = folder.records().values()
print(f"  {len(records)} units, {sum(r.rows for r in records)} rows", flush=True)
"""
DUCKDB = """
import duckdb, sys
duckdb.sql(f"SET enable_progress_bar = false")
duckdb.sql(f"COPY (FROM '{sys.argv[2]}' ORDER BY url, caption) TO '{sys.argv[1]}' (FORMAT parquet)")
"""
POLARS = "import polars, sys; polars.read_parquet(sys.argv[2]).sort('url', 'caption').write_parquet(sys.argv[1])"


def measure(name: str, program: str, out: Path, path: Path, rows: int) -> None:
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", program, str(out), str(path)])
    watch = PeakMemory(process.pid)
    watch.start()
    code = process.wait()
    spent = time.monotonic() - begun
    watch.done.set()
    print(
        f"{name:<26}{spent:>8.1f} s{rows / spent:>11,.0f} rows/s{watch.cpu():>8.1f} CPU s{watch.peak / 2**30:>7.2f} GiB"
        f"   exit {code}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    folder = Path(tempfile.mkdtemp(prefix="pairmill-bench-"))
    try:
        path = folder / "rows.parquet"
        generate(path, rows)
        print(f"{rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB of Parquet")
        for name in ("fasttext-176", "none"):
            program = OURS.replace("LANG_MODEL", repr(name))
            measure(f"ingest, {name}", program, folder / name, path, rows)
            shutil.rmtree(folder / name)
        measure("DuckDB read, sort, write", DUCKDB, folder / "d.parquet", path, rows)
        measure("polars read, sort, write", POLARS, folder / "p.parquet", path, rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
