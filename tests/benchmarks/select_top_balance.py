"""Rows a second of top and balance, in this process: python -m tests.benchmarks.select_top_balance [rows] [entries].

Units of 10,000 rows with a cosine each and a text of 2 to 19 words: half by a long-tailed draw from 200,000, half codes
that no other text has. Entries are the most frequent words and pairs of words of such texts, about five a text. The
floor is 10 million rows, both together, in 2 minutes.
"""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dedupe.stage import run_dedupe
from pipeline.select.entries import Matcher, most_frequent
from pipeline.select.stage import run_select
from pipeline.stop import StopFlag
from pipeline.storage import open_store
from pipeline.units import Output, StageFolder
from schemas.recipe import parse_recipe
from schemas.tables import EMBEDDINGS, OUTCOMES, SCORES

UNIT = 10_000
TEXTS = 100_000
FLOOR_S, FLOOR_ROWS = 120.0, 10_000_000


def main(rows: int, entries: int, root: Path) -> None:
    store = open_store(str(root))
    keys = ("download", "dedupe", "embed/b32", "scores/b32")
    folders = {key: StageFolder(store, key.partition("/")[0], "b") for key in keys}
    texts, others = (pa.array(list(sentences(TEXTS, seed))) for seed in (0, 1))
    (root / "grams").mkdir()
    begun, cpu = time.perf_counter(), time.process_time()
    grams = most_frequent([pa.chunked_array([others])], entries, root / "grams")
    tell(f"{len(grams):,} n-grams counted", TEXTS, begun, cpu)
    (root / "entries.txt").write_text("\n".join(grams))
    matcher = Matcher(grams)
    begun, cpu = time.perf_counter(), time.process_time()
    found = matcher.match(pa.chunked_array([texts]))
    tell(f"matching alone, {len(found.values) / TEXTS:.1f} entries a text", TEXTS, begun, cpu)
    for unit in range(rows // UNIT):
        make_unit(folders, unit, texts)
    stop = StopFlag(store.uri, "benchmark")
    begun, cpu = time.perf_counter(), time.process_time()
    recipe = parse_recipe({"dedupe": {"levels": {}}}, "benchmark")
    run_dedupe(store, recipe, folders, folders["dedupe"], "benchmark", stop, lambda result: None)
    tell("dedupe without a level", rows, begun, cpu)
    top = {"column": "clip_score", "fraction": 0.5}
    balance = {"entries": str(root / "entries.txt"), "tail": 0.1}
    for name, select in (("nothing", {}), ("top", {"top": top}), ("balance", {"balance": balance}),
                         ("top of the pool, then balance", {"top": top, "balance": balance})):  # fmt: skip
        both(store, folders, name, select, rows, stop)
        print(f"peak RSS so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")


def both(store: Any, folders: dict[str, StageFolder], name: str, select: dict[str, Any], rows: int, stop: Any) -> None:
    encoder = {"name": "b32", "arch": "ViT-B-32", "weights": "untrained"}
    recipe = parse_recipe({"embed": {"encoders": [encoder]}, "select": select}, "benchmark")
    folder = StageFolder(store, "select", "".join(f"{ord(char):02x}" for char in name))
    begun, cpu = time.perf_counter(), time.process_time()
    run_select(store, recipe, folders, folder, "benchmark", stop, lambda result: None)
    tell(name, rows, begun, cpu)
    kept = sum(record.counts.get("ok", {}).get("", 0) for record in folder.iter_records())
    print(f"  {kept:,} kept ({kept / rows:.1%})")


def tell(what: str, rows: int, begun: float, cpu: float) -> None:
    took, used = time.perf_counter() - begun, time.process_time() - cpu
    ahead, ahead_cpu = took * FLOOR_ROWS / rows, used * FLOOR_ROWS / rows
    print(
        f"{what}: {took:.1f} s ({used:.1f} s CPU), {rows / took:,.0f} rows/s; 10 million in {ahead:.0f} s"
        f" ({ahead_cpu:.0f} s CPU; floor {FLOOR_S:.0f} s)",
        flush=True,
    )


def sentences(count: int, seed: int) -> Iterator[str]:
    random = np.random.default_rng(seed)
    vocabulary = np.array([f"{'aeiou'[n % 5]}{n:x}{'nrst'[n % 4]}" for n in range(200_000)])
    lengths = random.integers(2, 20, count)
    ranks = np.floor(len(vocabulary) ** random.random(lengths.sum())).astype(int) - 1  # as 1 / rank
    codes = random.integers(1 << 30, 1 << 31, lengths.sum()).astype("U10")
    drawn = np.where(random.random(lengths.sum()) < 0.5, codes, vocabulary[ranks]).tolist()
    first = 0
    for length in lengths.tolist():
        words = drawn[first : first + length]
        first += length
        yield " ".join(words[: length // 2]) + ", " + " ".join(words[length // 2 :])


def make_unit(folders: dict[str, StageFolder], number: int, texts: pa.Array) -> None:
    name = f"0001-{number:07d}"
    random = np.random.default_rng(number)
    digits = random.bytes(16 * UNIT).hex()
    uids = [digits[start : start + 32] for start in range(0, 32 * UNIT, 32)]
    rows = {
        "uid": uids, "text": texts.take(pa.array(random.integers(0, len(texts), UNIT))), "batch": ["0001"] * UNIT,
        "status": ["ok"] * UNIT, "unit": [name] * UNIT, "generation": np.zeros(UNIT, np.int32),
        "original_width": random.integers(64, 3000, UNIT), "original_height": random.integers(64, 3000, UNIT),
    }  # fmt: skip
    scores = {"uid": uids, "encoder": ["b32"] * UNIT, "clip_score": random.normal(0.2, 0.06, UNIT).astype(np.float32)}
    for key, table, schema, columns in (
        ("download", "outcomes", OUTCOMES, rows), ("scores/b32", "scores", SCORES, scores),
        ("embed/b32", "embeddings", EMBEDDINGS, {**scores, "status": ["ok"] * UNIT}),
    ):  # fmt: skip
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(UNIT, field.type)
            for field in schema
        ]
        folder = folders[key]
        scratch = folder.store.scratch()
        pq.write_table(pa.table(arrays, schema=schema), scratch / f"{table}.parquet", compression="zstd")
        attempt = folder.begin(name, 0, "benchmark", False)
        folder.commit(attempt, [Output(table, scratch / f"{table}.parquet", UNIT)], {"ok": {"": UNIT}}, UNIT, "")
        shutil.rmtree(scratch)


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    known = int(sys.argv[2]) if len(sys.argv) > 2 else 500_000
    with tempfile.TemporaryDirectory() as temporary:
        main(wanted, known, Path(temporary))
