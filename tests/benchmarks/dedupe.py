"""Duplicates among generated rows: seconds, CPU seconds and peak memory by level, beside a GROUP BY of DuckDB.

    python tests/benchmarks/dedupe.py [ROWS] [--only LEVEL...]        1 million rows unless told

Floors (issue 3), at 10 million rows: bytes within 10 times the GROUP BY, perceptual under 15 minutes, 8 GB, growth from
1 to 10 million no worse than n^1.15; candidate pairs, which grow as n^2, are reported apart.
2% of the rows are in 100 hot families; 10% in groups of 2 to 5, edits of one image 2 to 30 bits from it; 1% repeat the
bytes of another row. Bits are correlated as those of 4,009 twemoji are (root mean square 0.05: distances of strangers
have a standard deviation of 10 bits, 8 were they independent). One row in twenty has one of 100 boilerplate texts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from pipeline.dedupe.find import ROWS  # noqa: E402

CHUNK = 250_000
FACTORS, SHARE = 64, 0.62
FAMILIES = 100
LEVELS = ("group_by", "bytes", "image", "pair")

LOAD = "import pyarrow.parquet as pq; table = pq.read_table(PATH).combine_chunks()"
FIND = """
from pipeline.dedupe.find import find_duplicates
from pipeline.dedupe import find
from schemas.recipe import Dedupe
made = find_duplicates(table, table.slice(0, 0), Dedupe(levels=LEVELS, scope=SCOPE))
"""
PROGRAMS = {
    "group_by": "import duckdb\nquery = 'SELECT sha256, text, min(uid), count(*) FROM \"table\" GROUP BY ALL'"
    "\nmade = duckdb.sql(query).to_arrow_table()",
    "bytes": FIND.replace("LEVELS", "{'bytes': True}").replace("SCOPE", "'pair'"),
    "image": FIND.replace("LEVELS", "{'pdq': 31}").replace("SCOPE", "'image'"),
    "pair": FIND.replace("LEVELS", "{'pdq': 31}").replace("SCOPE", "'pair'"),
}
AROUND = """
import json, logging, resource, sys, time
class Lines(logging.Handler):
    def emit(self, record): notes.append(record.getMessage())
notes = []
logging.getLogger().addHandler(Lines()); logging.getLogger().setLevel(logging.INFO)
{load}
wall, cpu = time.monotonic(), time.process_time()
{program}
print(json.dumps({{"seconds": time.monotonic() - wall, "cpu": time.process_time() - cpu, "rows": len(made),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "notes": notes}}))
"""


def generate(path: Path, rows: int) -> None:
    rng = np.random.default_rng(11)
    loadings = rng.standard_normal((FACTORS, 256), np.float32)
    loadings *= np.sqrt(SHARE / (loadings**2).sum(axis=0))
    families = _strangers(rng, FAMILIES, loadings)
    with pq.ParquetWriter(path, ROWS) as writer:
        for start in range(0, rows, CHUNK):
            writer.write_table(_rows(rng, start, min(CHUNK, rows - start), loadings, families))


def _strangers(rng: np.random.Generator, count: int, loadings: np.ndarray) -> np.ndarray:
    noise = rng.standard_normal((count, 256), np.float32) * np.sqrt(np.float32(1 - SHARE))
    return np.packbits(rng.standard_normal((count, FACTORS), np.float32) @ loadings + noise > 0, axis=1)


def _rows(rng: np.random.Generator, start: int, count: int, loadings: np.ndarray, families: np.ndarray) -> pa.Table:
    pdq = _strangers(rng, count, loadings)
    colour = rng.integers(40, 220, (count, 48), np.uint8)
    sha = rng.bytes(32 * count)
    digests = np.frombuffer(sha, np.uint8).reshape(count, 32).copy()
    text = np.frombuffer(rng.bytes(16 * count), np.uint8).reshape(count, 16).copy()
    boiler = rng.random(count) < 0.05
    text[boiler] = 0
    text[boiler, 0] = rng.integers(0, 100, int(boiler.sum()))
    place, hot_end, near_end, bytes_end = (
        0,
        count // 50,
        count // 50 + count // 10,
        count // 50 + count // 10 + count // 100,
    )
    family = rng.integers(0, FAMILIES, hot_end)
    pdq[:hot_end] = _edited(rng, families[family], 12)
    colour[:hot_end] = 128 + family[:, None] % 64
    place = hot_end
    while place < near_end:
        size = int(rng.integers(2, 6))
        group = slice(place + 1, min(place + size, near_end))
        edits = group.stop - group.start
        pdq[group] = _edited(rng, np.repeat(pdq[place : place + 1], edits, 0), 30)
        colour[group] = colour[place] + rng.integers(-1, 2, (edits, 1)).astype(np.int8).view(np.uint8)
        text[group] = np.where(rng.random((edits, 1)) < 0.5, text[place], text[group])
        place += size
    digests[near_end:bytes_end] = digests[:1]
    for column in (digests, pdq, colour, text):
        column[near_end:bytes_end] = column[bytes_end : 2 * bytes_end - near_end]
    order = rng.permutation(count)
    uid = np.frombuffer(rng.bytes(16 * count), np.uint8).reshape(count, 16)
    columns: list[Any] = [
        _binary(uid), _binary(digests[order]), _binary(text[order]),
        pa.array(rng.integers(10_000, 4_000_000, count)), pa.array(rng.integers(1_000, 1_000_000, count)),
        _binary(pdq[order]), pa.array(np.full(count, 100, np.int32)), _binary(colour[order]),
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=ROWS)


def _edited(rng: np.random.Generator, pdq: np.ndarray, most: int) -> np.ndarray:
    """Each with an even number of random bits flipped, up to `most`."""
    bits = 2 * rng.integers(0, most // 2 + 1, len(pdq))
    draws = np.argsort(rng.random((len(pdq), 256), np.float32), axis=1)
    return pdq ^ np.packbits(draws < bits[:, None], axis=1)


def _binary(values: np.ndarray) -> pa.Array:
    width = values.shape[1]
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def measure(level: str, path: Path) -> dict[str, Any]:
    script = AROUND.format(load=LOAD.replace("PATH", repr(str(path))), program=PROGRAMS[level])
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", choices=LEVELS, default=LEVELS)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pairmill-bench-") as folder:
        path = Path(folder) / "rows.parquet"
        generate(path, flags.rows)
        print(
            f"{flags.rows:,} rows\n| level | seconds | CPU s | peak GiB | rows found |\n| --- | --- | --- | --- | --- |"
        )
        for level in flags.only:
            got = measure(level, path)
            line = (
                f"| {level} | {got['seconds']:.1f} | {got['cpu']:.1f} | {got['peak'] / 2**30:.2f} | {got['rows']:,} |"
            )
            print("\n".join([line, *(f"  {note}" for note in got["notes"])]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
