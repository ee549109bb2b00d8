"""Samples a second of one shard worker in this process, as tars and as an index: python -m tests.benchmarks.shard [n].

Units have 10,000 rows of 15 KB images (random bytes behind a JPEG signature: nothing decodes here), all in one pool
file so that many units fit on a small disk.
"""

import cProfile
import hashlib
import json
import os
import pstats
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
from pipeline.shard.index import Index
from pipeline.shard.plan import next_round
from pipeline.shard.stage import ShardWorker
from pipeline.stop import StopFlag
from pipeline.storage import Store, open_store
from pipeline.units import Output, StageFolder
from schemas.recipe import parse_recipe
from schemas.tables import OUTCOMES
from tests.pool_fixture import FETCHED

UNIT = 10_000


def main(samples: int, root: Path) -> None:
    store = open_store(str(root))
    download = StageFolder(store, "download", "d")
    started = time.perf_counter()
    pool, members = make_pool(store)
    for unit in range(samples // UNIT):
        make_unit(download, unit, pool, members)
    print(f"made {samples} rows in {time.perf_counter() - started:.1f} s")
    recipe = parse_recipe({"dedupe": {"levels": {}}}, "benchmark")
    folders = {"download": download}
    for stage, run in (("dedupe", run_dedupe), ("select", run_select)):
        folders[stage] = StageFolder(store, stage, stage[0])
        run(store, recipe, folders, folders[stage], "benchmark", StopFlag(store.uri, "benchmark"), lambda result: None)
    started = time.perf_counter()
    round_ = next_round(recipe.shard, download, folders["select"], [], "benchmark")
    assert round_ is not None
    print(f"planned {len(round_.units)} shards in {time.perf_counter() - started:.2f} s")
    for mode, name in (("tars", "s"), ("index", "i")):
        asked = parse_recipe({"dedupe": {"levels": {}}, "shard": {"mode": mode}}, "benchmark")
        store.create(f"shard/{name}/rounds/0001.json", round_.to_bytes())
        worker = ShardWorker(str(root), asked, {"download": "d", "select": "s", "shard": name}, "benchmark")
        for unit in round_.units[:8]:
            started, cpu = time.perf_counter(), time.process_time()
            worker.run(dict(unit), alone=True)
            took, used = time.perf_counter() - started, time.process_time() - cpu
            rows = unit["rows"]
            assert isinstance(rows, int)
            speed = f"{rows / took:,.0f}/s, {1e3 * used / rows:.4f} ms CPU each"
            print(f"{mode}, shard {unit['shard']}: {rows} samples, {speed}")
    store.replace("shard/i/dataset/dataset.json", b'{"mode": "index"}')
    store.replace("shard/i/dataset/sizes.json", json.dumps({f"{s:05d}.parquet": UNIT for s in range(2)}).encode())
    started, cpu = time.perf_counter(), time.process_time()
    rows = sum(1 for _ in Index(store, "i").read())
    took, used = time.perf_counter() - started, time.process_time() - cpu
    print(f"index read: {rows} images, {rows / took:,.0f}/s, {1e3 * used / rows:.4f} ms CPU each")
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")


def make_pool(store: Store) -> tuple[str, list[tuple[int, int, str]]]:
    """The pool file's path, and (offset, size, sha256) of its images."""
    generator = np.random.default_rng(0)
    local = store.scratch() / "pool.tar"
    members = []
    with local.open("wb") as pool:
        for row in range(UNIT):
            image = b"\xff\xd8\xff" + generator.bytes(15_000 + row % 700)
            members.append((pool.tell() + 512, len(image), hashlib.sha256(image).hexdigest()))
            pool.write(bytes(512) + image + bytes(-len(image) % 512))
    store.publish(local, "pool.tar")
    return "pool.tar", members


def make_unit(download: StageFolder, number: int, pool: str, members: list[tuple[int, int, str]]) -> None:
    name = f"0001-{number:07d}"
    scratch = download.store.scratch()
    rows = [
        {
            "uid": hashlib.sha256(f"{number} {row}".encode()).hexdigest()[:32], "source": "list", "batch": "0001",
            "source_row": number * UNIT + row, "url": f"https://host{number}.example/images/{row}/photo.jpg",
            "text": f"a caption of usual length for image {row}", "caption": f"a caption of image {row}",
            "status": "ok", "generation": 0, "unit": name, "pool_file": pool, "pool_offset": offset,
            "pool_size": size, "pool_sha256": digest, "sha256": digest, "width": 256, "height": 256,
            "original_width": 800, "original_height": 600, "exif": "{}", "fetched_at": FETCHED,
        }
        for row, (offset, size, digest) in enumerate(members)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=OUTCOMES), scratch / "outcomes.parquet")
    outputs = [Output("outcomes", scratch / "outcomes.parquet", UNIT)]
    download.commit(download.begin(name, 0, "benchmark", False), outputs, {"ok": {"": UNIT}}, UNIT, "")


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as temporary:
        if os.environ.get("PROFILE"):
            profile = cProfile.Profile()
            profile.runcall(main, wanted, Path(temporary))
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        else:
            main(wanted, Path(temporary))
