"""A retraction from its list to its receipt, in an order in which a kill anywhere leaves what the next run can finish.

matches → 0001.tombstone, 0001.json (from here on every run honours it, and finishes it) → shards, select, dedupe,
hashes, download, ingest: new generations, downstream first, so that nothing ever shows as kept what upstream no longer
has → places of images in indexes → complete.json → tables → old generations and everything else that no record names →
receipt.
"""

import getpass
import logging
import socket
from collections.abc import Callable

from pipeline.errors import LeaseLostError
from pipeline.faults import fault_point
from pipeline.fence import raise_fence
from pipeline.retract.foreign import remove_foreign
from pipeline.retract.leftovers import (
    remove_old_generations,
    remove_old_tables,
    remove_unrecorded,
    undo_unfinished_readmissions,
    undo_unfinished_rounds,
)
from pipeline.retract.listing import Kind, Listed
from pipeline.retract.matches import Found, find_matches
from pipeline.retract.places import move_places
from pipeline.retract.read import SET_LEVEL, every_folder, in_parallel, upstream_of
from pipeline.retract.rewrite import Leaving, download_unit, ingest_unit, rewritten, uid_unit
from pipeline.retract.shards import shard_unit, write_index
from pipeline.retract.tombstone import FOLDER, Tombstones, read_retractions, tombstone, unfinished_retraction
from pipeline.root import read_batches
from pipeline.rounds import read_rounds
from pipeline.storage import Store
from pipeline.tables import publish, read_published
from pipeline.train.registry import that_saw
from pipeline.units import StageFolder, current_folder
from schemas.recipe import ORDER
from schemas.records import Batch, Retraction, UnitRecord, now

log = logging.getLogger(__name__)

OTHERS_TOLD = 100
"""Files of others that a receipt names."""


def look(store: Store, listed: Listed, keep_group: bool, why: str, run: str) -> tuple[Retraction, Found]:
    """What a retraction would do; nothing is written."""
    known = read_retractions(store)
    found = find_matches(store, listed, keep_group)
    published = read_published(store, "pairs")
    described = Retraction(
        retraction=f"{int(known[-1].retraction) + 1 if known else 1:04d}",
        begun_at=now(), run=run, who=getpass.getuser(), host=socket.gethostname(), why=why, keep_group=keep_group,
        list_sha256=listed.sha256, listed={kind: len(values) for kind, values in sorted(listed.values.items())},
        rows=found.rows, pdq_unknown=found.pdq_unknown, decide_again=sorted(found.again),
        tables={"before": published.version} if published else {}, adopted=dict(found.adopted),
        bucket_versioned=store.versioned(), checkpoints=sorted(that_saw(store, found.uids)),
    )  # fmt: skip
    return described, found


def retract(
    store: Store, listed: Listed, keep_group: bool, why: str, run: str, check: Callable[[], None]
) -> Retraction | None:
    """Withdraw what the list names, for the holder of the lease; None where all of it was withdrawn before.

    `check` raises LeaseLostError once the lease is lost.
    """
    raise_fence(store)
    if finish(store, check):
        log.info("the retraction that was cut short is finished")
    described, found = look(store, listed, keep_group, why, run)
    before = Tombstones.load(store)
    if not found.rows and all(_known(before, kind, value) for kind, value in _to_honour(listed, found)):
        return None
    lines = _tombstones(listed, found)
    check()
    path = f"{FOLDER}/{described.retraction}"
    fault_point("before-intent")
    store.replace(f"{path}.tombstone", ("\n".join(lines) + "\n").encode())
    fault_point("mid-intent")
    if not store.create(f"{path}.json", described.to_bytes()):
        raise LeaseLostError(f"{store.uri}/{path}.json: another run has just written it; this run stops")
    fault_point("after-intent")
    return finish(store, check)


def finish(store: Store, check: Callable[[], None]) -> Retraction | None:
    """Do what is left of an unfinished retraction; its receipt, or None where there is none. Needs no list."""
    retraction = unfinished_retraction(store)
    if retraction is None:
        return None
    changes = _withdraw(store, retraction, check) if retraction.rows else {}
    receipt = retraction.model_copy(update={"finished_at": now(), **changes})
    store.replace(f"{FOLDER}/{retraction.retraction}.json", receipt.to_bytes())
    return receipt


def _withdraw(store: Store, retraction: Retraction, check: Callable[[], None]) -> dict[str, object]:
    """Take the rows out of everything; what the receipt says of it."""
    stones = Tombstones.load(store, retraction.retraction)
    leaving = Leaving(retraction, stones, frozenset(retraction.decide_again))
    undo_unfinished_rounds(store)
    undo_unfinished_readmissions(store)
    batches = read_batches(store)
    for stage in reversed(ORDER):
        for folder in every_folder(store, stage):
            check()
            _rewrite_units(folder, leaving, batches)
    for folder in every_folder(store, "shard"):
        check()
        move_places(folder, leaving)
    for folder in every_folder(store):
        _recount(folder, leaving)
    check()
    fault_point("before-publication")
    published = publish(store, again=True)
    for folder in every_folder(store):
        check()
        remove_old_generations(folder, leaving)
    remove_unrecorded(store)
    remove_old_tables(store)
    removed, others = remove_foreign(store, stones)
    fault_point("before-receipt")
    return {
        "datasets": [
            {"path": f"{base}/dataset", "samples": tables["samples"]}
            for base, tables in retraction.rows.items()
            if "samples" in tables
        ],
        "tables": retraction.tables | ({"after": published} if published else {}),
        "removed_pages": removed,
        "other_files": others[:OTHERS_TOLD],
    }


def _rewrite_units(folder: StageFolder, leaving: Leaving, batches: dict[str, Batch]) -> None:
    upstream = upstream_of(folder) if folder.stage in ("dedupe", "semantic") else {}

    def one(record: UnitRecord) -> bool:
        if rewritten(folder, record, leaving):
            return False
        if folder.stage == "ingest":
            return ingest_unit(folder, record, leaving, batches)
        if folder.stage == "download":
            return download_unit(folder, record, leaving)
        if folder.stage == "shard":
            return shard_unit(folder, record, leaving)
        return uid_unit(folder, record, leaving, upstream)

    changed = sum(in_parallel(folder.store, one, folder.iter_records()))
    if changed:
        log.info("%s: %d units written again", folder.base, changed)


def _recount(folder: StageFolder, leaving: Leaving) -> None:
    """Fold complete.json and the dataset's index again; a folder that is not current does not become it."""
    done = folder.completed()
    if folder.stage in SET_LEVEL:
        _say_rows(folder)
    if folder.stage == "shard":
        write_index(folder, leaving)
    if done is None:
        return
    by_batch = folder.stage not in SET_LEVEL
    records = (record for record in folder.iter_records() if not by_batch or _batch(record.unit) in done.batches)
    current = current_folder(folder.store, folder.stage)
    if current is not None and current.fingerprint == folder.fingerprint:
        folder.complete(records, done.batches, None)
    else:
        folder.recount(records)


def _say_rows(folder: StageFolder) -> None:
    """Rounds say how many rows their units have: those that are left."""
    rows = {record.unit: record.rows for record in folder.iter_records()}
    for round_ in read_rounds(folder):
        units = [{**unit, "rows": rows.get(str(unit["unit"]), unit["rows"])} for unit in round_.units]
        if units != round_.units:
            changed = round_.model_copy(update={"units": units})
            folder.store.replace(f"{folder.base}/rounds/{round_.round}.json", changed.to_bytes())


def _batch(unit: str) -> str:
    return unit.partition("-")[0]


PDQ_ONES = 128
"""Ones in a PDQ hash: its bits say whether a coefficient is above the median of 256."""


def _to_honour(listed: Listed, found: Found) -> list[tuple[Kind, str]]:
    """The list's values for later runs.

    A tombstone tells a PDQ hash as it is. So 64 bare digits, which may be a sha256, become one only where a stored PDQ
    hash is near them, or where nothing has this sha256 and they look like a PDQ hash.
    """

    def told(kind: Kind, value: str) -> bool:
        if kind != "pdq" or ("sha256", value) not in listed or ("pdq", value) in found.hit:
            return True
        return ("sha256", value) not in found.hit and int(value, 16).bit_count() == PDQ_ONES

    return [(kind, value) for kind, values in sorted(listed.values.items()) for value in values if told(kind, value)]


def _known(before: Tombstones, kind: Kind, value: str) -> bool:
    return before.holds_pdq(value) if kind == "pdq" else before.has(kind, value) is not None


def _tombstones(listed: Listed, found: Found) -> list[str]:
    """Sorted lines; found.uids also has the uids of the list."""
    own: list[tuple[Kind, str]] = [*(("uid", uid) for uid in found.uids), *(("url", url) for url in found.urls)]
    own += [("sha256", digest) for digest in found.bodies]
    return sorted({tombstone(kind, value) for kind, value in [*_to_honour(listed, found), *own]})
