"""Publishing tables of a made-up ROOT: seconds and peak memory.

    python -m tests.benchmarks.tables FOLDER [ROWS]

Prints one row a table size. Units of 10,000 rows, half ok, unique uids in host order as download leaves them.
"""

import hashlib
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import LocalStore
from pipeline.tables import publish
from pipeline.units import Attempt, Output, StageFolder
from schemas.tables import CONSENT, OUTCOMES, PAIRS, REJECTS

UNIT = 10_000


def make_root(root: Path, rows: int) -> None:
    store = LocalStore(root)
    folders = {stage: StageFolder(store, stage, "0" * 16) for stage in ("ingest", "download")}
    words = np.array(
        ["a red fox", "photo", "night", "harbour", "by the sea", "flag of", "sunset", "of two", "mountain"]
    )
    random = np.random.default_rng(1)
    for number in range(rows // UNIT):
        unit = f"0001-{number:07d}"
        ids = np.arange(number * UNIT, (number + 1) * UNIT)
        urls = [f"https://host{i // 50}.example/images/{random.integers(1 << 60):x}/{i}.jpg?size=large" for i in ids]
        texts = [" ".join(random.choice(words, 9)) for _ in ids]
        hashes = [hashlib.sha256(url.encode()).hexdigest() for url in urls]
        columns = {
            "uid": [value[:32] for value in hashes], "url": urls, "fetch_url": urls, "text": texts, "caption": texts,
            "source": ["/data/part-00001.parquet"] * UNIT, "source_row": ids, "batch": ["0001"] * UNIT,
            "text_repaired": [False] * UNIT, "n_chars": [len(text) for text in texts], "n_words": [9] * UNIT,
            "final_url": urls, "sha256": hashes, "sha1": [value[:40] for value in hashes], "http_status": [200] * UNIT,
            "md5": [value[32:] for value in hashes], "url_md5": [value[16:48] for value in hashes],
            "pool_sha256": hashes[::-1], "pool_offset": ids * 12_800, "pool_size": [12_000] * UNIT, "bytes": ids * 7,
            "pool_file": [f"download/{'0' * 16}/pool/{unit}.0.1.tar"] * UNIT, "unit": [unit] * UNIT,
            "status": ["ok"] * UNIT, "width": [256] * UNIT, "height": [341] * UNIT, "generation": [0] * UNIT,
            "original_width": [1024] * UNIT, "original_height": [1365] * UNIT, "content_type": ["image/jpeg"] * UNIT,
        }  # fmt: skip
        for stage, tables in (
            ("ingest", {"pairs": PAIRS, "rejects": REJECTS}),
            ("download", {"outcomes": OUTCOMES, "consent": CONSENT}),
        ):
            scratch = store.scratch()
            outputs = []
            for name, schema in tables.items():
                count = UNIT if name in ("pairs", "outcomes") else 0
                blank = [None] * count
                table = pa.table({f.name: columns.get(f.name, blank)[:count] for f in schema}, schema=schema)
                pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
                outputs.append(Output(name, scratch / f"{name}.parquet", count))
            folders[stage].commit(Attempt(unit, 0, 1, 0), outputs, {"ok": {"": UNIT}}, UNIT, "0")
            scratch.rmdir()
    for folder in folders.values():
        folder.complete(folder.records(), ["0001"], None)


def main() -> None:
    root, rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2_000_000
    if not root.exists():
        make_root(root, rows)
    store = LocalStore(root)
    for stage in ("ingest", "download"):
        folder = StageFolder(store, stage, "0" * 16)
        store.delete(f"{folder.base}/complete.json")
        folder.complete(folder.records(), ["0001"], None)
    start = time.perf_counter()
    version = publish(store, ("ingest", "download", "shard"))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    parts = sorted((root / "tables").glob(f"*/v{version}/*.parquet"))
    sizes = ", ".join(f"{path.parent.parent.name}/{path.name} {os.path.getsize(path) >> 20} MiB" for path in parts)
    print(f"{rows:,} rows: {seconds:.1f} s, peak {peak:.2f} GiB; {sizes}")


if __name__ == "__main__":
    main()
