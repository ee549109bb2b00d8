"""Reading and folding made-up unit records on a local disk, and what a commit costs.

    python -m tests.benchmarks.records [--units 100000] [--commits 300] [--folder DIR]

Bound: 100,000 records in under 60 s and 1 GB.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.storage import LocalStore
from pipeline.units import Output, StageFolder
from schemas.records import FileEntry, UnitRecord

COUNTS = {
    "ok": {"": 8000},
    "failed": {"timeout": 300, "dns": 900, "http_error": 500},
    "refused": {"robots": 200},
    "rejected": {"too_small": 100},
}


def make(folder: StageFolder, root: Path, units: int) -> None:
    (root / folder.base / "units").mkdir(parents=True)
    for number in range(units):
        name = f"{number // 20_000 + 1:04}-{number % 20_000:07}"
        record = UnitRecord(
            unit=name, generation=0, attempt=1, input_digest="ab" * 32, rows=10_000, counts=COUNTS,
            files=[
                FileEntry(path=f"{table}/{name}.0.1.{suffix}", bytes=10**8 + number, sha256=f"{number:064x}",
                          rows=8000, table=table)
                for table, suffix in (("pool", "tar"), ("outcomes", "parquet"), ("consent", "parquet"))
            ],
        )  # fmt: skip
        (root / folder.base / "units" / f"{name}.0.json").write_bytes(record.to_bytes())


def commits(folder: StageFolder, scratch: Path, count: int) -> float:
    """Seconds a commit of three small files, with its attempt's mark."""
    begun = time.monotonic()
    for number in range(count):
        attempt = folder.begin(f"0001-{number:07}", 0, "run", alone=False)
        outputs = []
        for table in ("pool", "outcomes", "consent"):
            local = scratch / f"{table}.bin"
            local.write_bytes(bytes(1000))
            outputs.append(Output(table, local, 1))
        folder.commit(attempt, outputs, {"ok": {"": 1}}, 1, "")
    return (time.monotonic() - begun) / count


CASES = ("generations", "iter_records", "records", "complete", "complete again", "sweep")


def case(name: str, root: Path) -> None:
    """One measurement in a process of its own, so that its peak memory is its own too."""
    folder = StageFolder(LocalStore(root), "download", "made-up")
    begun = time.monotonic()
    if name == "generations":
        found = len(folder.generations())
    elif name == "iter_records":
        found = sum(1 for _ in folder.iter_records())
    elif name == "records":
        found = len(folder.records())
    elif name == "sweep":
        found = folder.sweep()
    else:
        found = int(folder.complete(folder.iter_records(), ["0001"], None))
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:16} {found:>8,} {seconds:8.1f} s {peak:8.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--commits", type=int, default=300)
    parser.add_argument("--folder", type=Path, help="where to make them; default: the temporary folder")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        return case(chosen.case, chosen.folder)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as made:
        root = Path(made)
        begun = time.monotonic()
        make(StageFolder(LocalStore(root), "download", "made-up"), root, chosen.units)
        print(f"made {chosen.units:,} records in {time.monotonic() - begun:.1f} s")
        for name in CASES:
            subprocess.run([sys.executable, "-m", __spec__.name, "--case", name, "--folder", made], check=True)
        (root / "scratch").mkdir()
        seconds = commits(StageFolder(LocalStore(root), "download", "commits"), root / "scratch", chosen.commits)
        print(f"commit of 3 files with its mark: {seconds * 1000:.2f} ms")


if __name__ == "__main__":
    main()
