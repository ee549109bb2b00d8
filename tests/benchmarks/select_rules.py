"""Rows a second of select, in this process: python -m tests.benchmarks.select_rules [rows].

Units of 10,000 rows whose outcomes and pairs have the columns and entropy of real ones (hashes are random, so files are
as large). Five rules over numbers and texts; then the same with text_count. The floor is 10 million rows in 60 s.
"""

import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dedupe.stage import run_dedupe
from pipeline.select.stage import run_select
from pipeline.stop import StopFlag
from pipeline.storage import open_store
from pipeline.units import Output, StageFolder
from schemas.recipe import parse_recipe
from schemas.tables import OUTCOMES, PAIRS

UNIT = 10_000
FLOOR_S = 60.0
FLOOR_ROWS = 10_000_000
RULES = {
    "size": "least(original_width, original_height) >= 200",
    "aspect": "greatest(original_width, original_height) / least(original_width, original_height) <= 3",
    "bytes": "bytes >= 5000",
    "words": "n_words BETWEEN 3 AND 256 AND n_chars > 5",
    "language": "lang = 'en'",
}


def main(rows: int, root: Path) -> None:
    store = open_store(str(root))
    folders = {stage: StageFolder(store, stage, "b") for stage in ("ingest", "download", "dedupe")}
    stop = StopFlag(store.uri, "benchmark")
    for unit in range(rows // UNIT):
        make_unit(folders, unit)
    size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
    print(f"{rows:,} rows in {rows // UNIT} units, {size / 2**20:,.0f} MB of outcomes and pairs")
    recipe = parse_recipe({"dedupe": {"levels": {}}}, "benchmark")
    started, cpu = time.perf_counter(), time.process_time()
    run_dedupe(store, recipe, folders, folders["dedupe"], "benchmark", stop, lambda result: None)
    tell("dedupe without a level", rows, started, cpu)
    for name, rules in (("five rules", RULES), ("six, one of text_count", RULES | {"seldom": "text_count <= 10"})):
        recipe = parse_recipe({"dedupe": {"levels": {}}, "select": {"rules": rules}}, "benchmark")
        folder = StageFolder(store, "select", f"b{len(rules)}")
        started, cpu = time.perf_counter(), time.process_time()
        run_select(store, recipe, folders, folder, "benchmark", stop, lambda result: None)
        tell(name, rows, started, cpu)
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")


def tell(what: str, rows: int, started: float, cpu: float) -> None:
    took, used = time.perf_counter() - started, time.process_time() - cpu
    ahead = took * FLOOR_ROWS / rows
    print(
        f"{what}: {took:.1f} s ({used:.1f} s CPU), {rows / took:,.0f} rows/s; 10 million in {ahead:.0f} s "
        f"({used * FLOOR_ROWS / rows:.0f} s CPU; floor {FLOOR_S:.0f} s)"
    )


def make_unit(folders: dict[str, StageFolder], number: int) -> None:
    name = f"0001-{number:07d}"
    random = np.random.default_rng(number)
    texts = [f"{'a photo of' if n % 3 else 'image'} {random.integers(0, 1 << 40)} in the garden" for n in range(UNIT)]
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    same = {
        "uid": [hash_[:32] for hash_ in hashes], "text": texts, "caption": texts, "batch": ["0001"] * UNIT,
        "source": ["list.parquet"] * UNIT, "source_row": np.arange(UNIT) + number * UNIT,
        "url": [f"https://host{number}.example/images/{hash_[:20]}/photo.jpg" for hash_ in hashes],
    }  # fmt: skip
    pairs = same | {
        "fetch_url": same["url"], "n_chars": [len(text) for text in texts], "n_words": random.integers(1, 30, UNIT),
        "lang": random.choice(["en", "de", "fr"], UNIT), "lang_score": random.random(UNIT, np.float32),
    }  # fmt: skip
    outcomes = same | {
        "status": ["ok"] * UNIT, "unit": [name] * UNIT, "generation": np.zeros(UNIT, np.int32), "sha256": hashes,
        "sha1": [hash_[:40] for hash_ in hashes], "md5": [hash_[8:40] for hash_ in hashes],
        "url_md5": [hash_[16:48] for hash_ in hashes],
        "pool_sha256": [hash_[::-1] for hash_ in hashes], "bytes": random.integers(1000, 400_000, UNIT),
        "original_width": random.integers(64, 3000, UNIT), "original_height": random.integers(64, 3000, UNIT),
        "final_url": same["url"], "pool_offset": np.arange(UNIT) * 16_384,
        "pool_size": random.integers(9000, 16_000, UNIT),
    }  # fmt: skip
    for stage, table, schema, rows in (("ingest", "pairs", PAIRS, pairs), ("download", "outcomes", OUTCOMES, outcomes)):
        columns = [
            pa.array(rows[field.name], field.type) if field.name in rows else pa.nulls(UNIT, field.type)
            for field in schema
        ]
        scratch = folders[stage].store.scratch() / f"{table}.parquet"
        pq.write_table(pa.table(columns, schema=schema), scratch, compression="zstd")
        attempt = folders[stage].begin(name, 0, "benchmark", False)
        folders[stage].commit(attempt, [Output(table, scratch, UNIT)], {"ok": {"": UNIT}}, UNIT, "")


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as temporary:
        main(wanted, Path(temporary))
