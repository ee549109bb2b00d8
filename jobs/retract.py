"""python -m jobs.retract ROOT --list F --why TEXT: withdraw rows for good, from every stage, table and shard."""

import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from jobs.arguments import DONE, Parser, run_main
from pipeline.build import leave
from pipeline.errors import InputError
from pipeline.lease import Lease
from pipeline.retract.listing import read_list
from pipeline.retract.run import look, retract
from pipeline.root import open_root
from pipeline.storage import LocalStore
from schemas.records import Retraction

SHOWN = 10
"""Paths told one by one; the receipt in ROOT has them all."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m jobs.retract",
        description="Withdraw rows: no byte of them stays under ROOT, and no later run takes them in again.",
    )
    parser.add_argument("root", metavar="ROOT", help="the --output of a build: a folder or s3://bucket/prefix")
    parser.add_argument(
        "--list", required=True, metavar="F",
        help="one md5, sha1, sha256, pdq, url_md5, url, host or uid a line (kind:value says which), or CSV or Parquet "
        "with columns of these names",
    )  # fmt: skip
    parser.add_argument("--why", required=True, metavar="TEXT", help="the reason, for the receipt")
    parser.add_argument(
        "--keep-group", action="store_true",
        help="where the witness of duplicates goes, the others stay, and the next build decides them again",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would go; nothing is written")
    flags = parser.parse_args(argv)
    return run_main(
        "pairmill retract", lambda: _retract(flags.root, flags.list, flags.why, flags.keep_group, flags.dry_run)
    )


def _retract(uri: str, path: str, why: str, keep_group: bool, dry_run: bool) -> int:
    if not why.strip():
        raise InputError("--why: is empty; say why, for whoever asks later")
    listed = read_list(path)
    store = open_root(uri)
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    if dry_run:
        described, _ = look(store, listed, keep_group, why, run)
        print("\n".join(_lines(described, uri, dry_run=True)))
        return DONE
    store.check()
    with Lease.acquire(store, run, on_lost=lambda: leave(uri)) as lease:
        if isinstance(store, LocalStore):
            store.clear_scratch()
        receipt = retract(store, listed, keep_group, why, run, lease.check)
    if receipt is None:
        print(f"{uri}: nothing to withdraw: no row matches, and later runs know the whole list already")
    else:
        print("\n".join(_lines(receipt, uri, dry_run=False)))
    return DONE


def _lines(said: Retraction, uri: str, dry_run: bool) -> Iterator[str]:
    """The receipt for people: numbers, and paths that are not withdrawn; nothing else of what went."""
    yield f"{uri}: retraction {said.retraction}" + (" (dry run: nothing was written)" if dry_run else "")
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in said.listed.items())
    yield f"list: {kinds}; sha256 {said.list_sha256}"
    yield f"by {said.who} at {said.begun_at}: {said.why}"
    for base, tables in said.rows.items():
        rows = ", ".join(f"{number:,} {table}" for table, number in tables.items())
        yield f"{base}: {rows} {'would go' if dry_run else 'withdrawn'}"
    if not said.rows:
        yield "no row matches; later runs will honour the list"
    if said.decide_again:
        yield f"{len(said.decide_again):,} rows of their groups stay; the next jobs.build decides them again"
    if said.pdq_unknown:
        yield f"{said.pdq_unknown:,} images have no stored PDQ hash, so the list's PDQ hashes say nothing of them"
    if "after" in said.tables:
        yield f"tables: version {said.tables['after']}; older versions are removed"
    for tar, images in list(said.adopted.items())[:SHOWN]:
        yield f"not ours to change: {tar} still holds {images:,} of the images"
    if len(said.adopted) > SHOWN:
        yield f"… and {len(said.adopted) - SHOWN:,} more tars outside ROOT"
    for checkpoint in said.checkpoints[:SHOWN]:
        yield f"trained on some of it, and not changed: {checkpoint}"
    if len(said.checkpoints) > SHOWN:
        yield f"… and {len(said.checkpoints) - SHOWN:,} more checkpoints"
    for page in said.removed_pages[:SHOWN]:
        yield f"removed: {page}"
    if said.other_files:
        yield f"left alone: {len(said.other_files)} files that are no part of a ROOT, such as {said.other_files[0]}"
    if said.bucket_versioned:
        yield "the bucket keeps old versions: what was removed stays there until its owner removes those too"
    elif said.bucket_versioned is None:
        yield "could not ask whether the bucket keeps old versions; if it does, its owner has to remove those too"
    if not dry_run:
        yield f"receipt: {uri.rstrip('/')}/retractions/{said.retraction}.json"


if __name__ == "__main__":
    sys.exit(main())
