"""Start-up (exec to the first request a server sees) and resuming a finished build of 100 units (no request at all).

python tests/benchmarks/startup.py [--repeat 3]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from download import our_env, our_role, write_recipe
from photo_web import PhotoServer, Web
from processes import Ran, run

URLS = 500
ROWS_A_BATCH = 12_500
"""50 units of 250 rows, the least a unit holds; two batches make 100."""
STARTUP_S = 10.0
RESUME_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    with PhotoServer(Web(URLS, 250)) as server, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = write_recipe(server, folder)
        lists = [_list(server, folder, batch) for batch in range(2)]
        first: list[float] = []
        for turn in range(repeat):
            server.take()
            began = time.time()
            _build(recipe, [lists[0]], folder / f"root-{turn}")
            first.append((server.take().first or float("nan")) - began)
        root = folder / "root-0"
        _build(recipe, [lists[1]], root)
        units = _units(root)
        server.take()
        resumed = [_build(recipe, lists, root) for _ in range(repeat)]
        requests = server.take().requests
    seconds = statistics.median(ran.seconds for ran in resumed)
    print("| what | measured | bound |\n| --- | --- | --- |")
    print(f"| exec to first request | {statistics.median(first):.1f} s | {STARTUP_S:.0f} s |")
    print(f"| resuming {units} finished units | {seconds:.1f} s, {requests} requests, "
          f"{max(ran.tree_mb for ran in resumed):.0f} MB | {RESUME_S:.0f} s, 0 requests |")  # fmt: skip
    return 0 if requests == 0 else 1


def _list(server: PhotoServer, folder: Path, batch: int) -> Path:
    """Rows that share URLs, 25 texts each, so that a build makes many units of few fetches."""
    urls = server.urls()
    rows = [(urls[row % URLS], f"photo {row} of list {batch}") for row in range(ROWS_A_BATCH)]
    path = folder / f"list-{batch}.parquet"
    pq.write_table(pa.table({"url": [url for url, _ in rows], "caption": [text for _, text in rows]}), path)
    return path


def _build(recipe: Path, lists: list[Path], root: Path) -> Ran:
    command = [sys.executable, "-m", "jobs.build", "--recipe", str(recipe), "--output", str(root)]
    ran = run([*command, "--input", *map(str, lists)], our_role, our_env(), every=0.1)
    if ran.code:
        raise SystemExit(f"jobs.build failed ({ran.code}):\n{ran.output[-3000:]}")
    return ran


def _units(root: Path) -> int:
    return sum(len(json.loads(path.read_text())["units"]) for path in root.glob("batches/*.json"))


if __name__ == "__main__":
    sys.exit(main())
