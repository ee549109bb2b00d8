"""python -m jobs.clean ROOT: removes what is no longer current, and says what and how much."""

import os
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from jobs.arguments import DONE, Parser, positive, run_main
from pipeline.clean import KEEP, Removal, removals, remove
from pipeline.lease import Lease
from pipeline.root import open_root


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m jobs.clean", description="Removes what is no longer current from a ROOT.")
    parser.add_argument("root", metavar="ROOT", help="the --output of a build: a folder or s3://bucket/prefix")
    parser.add_argument(
        "--keep", default=KEEP, type=positive, metavar="N", help=f"newest versions of the tables kept; default: {KEEP}"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    flags = parser.parse_args(argv)
    return run_main("pairmill clean", lambda: _clean(flags.root, flags.keep, flags.dry_run))


def _clean(uri: str, keep: int, dry_run: bool) -> int:
    store = open_root(uri)
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-clean-{uuid.uuid4().hex[:8]}"
    with Lease.acquire(store, run, on_lost=lambda: os._exit(1)) as lease:
        found = removals(store, keep)
        for removal in found:
            lease.check()
            if not dry_run:
                remove(store, removal)
            print(f"{'would remove' if dry_run else 'removed'} {_told(removal)}", flush=True)
    files, size = sum(removal.files for removal in found), sum(removal.bytes for removal in found)
    verb = "would be removed" if dry_run else "removed"
    print(f"{store.uri}: {_files(files)}, {_size(size)} {verb}" if found else f"{store.uri}: nothing to remove")
    return DONE


def _told(removal: Removal) -> str:
    many = f", {_files(removal.files)}" if removal.path.endswith("/") else ""
    return f"{removal.path} ({removal.why}{many}, {_size(removal.bytes)})"


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


if __name__ == "__main__":
    sys.exit(main())
