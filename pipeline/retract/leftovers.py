"""What else may hold something withdrawn: old generations, leftovers of kills, scratch, old tables."""

import contextlib
import logging
import re
from collections.abc import Collection, Mapping

from pipeline.faults import fault_point
from pipeline.ingest.readmit import is_released
from pipeline.retract.read import SET_LEVEL, every_folder, parquet_files, read_columns
from pipeline.retract.rewrite import Leaving, rewritten
from pipeline.root import read_batches
from pipeline.rounds import read_rounds, unfinished
from pipeline.storage import LocalStore, Store
from pipeline.tables import read_published
from pipeline.units import StageFolder
from pipeline.verify.state import UNRECORDED
from schemas.records import Batch, UnitRecord
from schemas.tables import TABLES

log = logging.getLogger(__name__)

_RECORD = re.compile(r"units/(\d+-\d+)\.(\d+)\.json$")


def undo_unfinished_rounds(store: Store) -> None:
    """Take back what killed runs made of a round: the next build decides it again, over the rows that are left."""
    for folder in every_folder(store, *SET_LEVEL):
        rounds = read_rounds(folder)
        generations = folder.generations()
        if not rounds or not unfinished(rounds[-1:], generations):
            continue
        units = {str(unit["unit"]) for unit in rounds[-1].units}
        for path, _ in list(store.files(f"{folder.base}/units")):
            if (match := _RECORD.search(path)) and match[1] in units:
                store.delete(path)
        store.delete(f"{folder.base}/rounds/{rounds[-1].round}.json")


def undo_unfinished_readmissions(store: Store) -> None:
    """Take back batches made by --readmit that are not wholly ingested: their rows are still among the rejects of the
    old batch, from where the same --readmit takes those that are left."""
    batches = read_batches(store)
    folders = every_folder(store, "ingest")
    for batch in batches.values():
        if not batch.readmits or any(_is_ingested(folder, batch, batches) for folder in folders):
            continue
        log.warning(
            "batch %s, not ingested yet, is taken back; --readmit %s makes it again", batch.batch, batch.readmits
        )
        for folder in folders:
            for unit, generation in folder.generations().items():
                if unit.partition("-")[0] == batch.batch:
                    store.delete(f"{folder.base}/units/{unit}.{generation}.json")
        fault_point("mid-undoing")
        store.delete(f"batches/{batch.batch}.json")


def _is_ingested(folder: StageFolder, batch: Batch, batches: Mapping[str, Batch]) -> bool:
    ingested, old = folder.generations(), batches[str(batch.readmits)]
    whole = all(unit.unit in ingested for unit in [*batch.units, *old.units])
    return whole and is_released(folder, list(batches.values()), old)


def remove_old_generations(folder: StageFolder, leaving: Leaving) -> None:
    """Forget what units were before this retraction, and whatever earlier generation holds something withdrawn."""
    store = folder.store
    current = folder.generations()
    old: dict[str, list[int]] = {}
    for path, _ in store.files(f"{folder.base}/units"):
        if (match := _RECORD.search(path)) and int(match[2]) < current[match[1]]:
            old.setdefault(match[1], []).append(int(match[2]))
    for unit, generations in sorted(old.items()):
        record = folder.record(unit, current[unit])
        named = {entry.path for entry in record.files}
        for generation in generations:
            before = folder.record(unit, generation)
            if rewritten(folder, record, leaving) or _holds(folder, before, named, leaving):
                store.delete(f"{folder.base}/units/{unit}.{generation}.json")
                fault_point("mid-removal", folder.stage)


def _holds(folder: StageFolder, record: UnitRecord, named: Collection[str], leaving: Leaving) -> bool:
    for entry in parquet_files(record):
        if entry.path not in named and _is_there(folder, entry.path):
            table = read_columns(folder, entry, ["uid", "url"])
            if "uid" in table.column_names and leaving.uids(table["uid"], also_again=False).any():
                return True
            if "url" in table.column_names and any(leaving.url(url) for url in table["url"].to_pylist()):
                return True
    return False


def _is_there(folder: StageFolder, path: str) -> bool:
    return folder.store.size(f"{folder.base}/{path}") is not None


def remove_unrecorded(store: Store) -> int:
    """Remove every file of the stages that no record names: of old generations, killed attempts, scratch; how many."""
    removed = 0
    for folder in every_folder(store):
        named = set()
        for path, _ in store.files(f"{folder.base}/units"):
            if match := _RECORD.search(path):
                named |= {f"{folder.base}/{entry.path}" for entry in folder.record(match[1], int(match[2])).files}
        for path, _ in list(store.files(folder.base)):
            if path not in named and not UNRECORDED.search(path):
                store.delete(path)
                removed += 1
                fault_point("mid-removal", folder.stage)
    for entry in store.unfinished():
        store.discard(entry.path)
    return removed


def remove_old_tables(store: Store) -> None:
    """Remove every version of the tables but the one that latest.json names."""
    for table in TABLES:
        published = read_published(store, table)
        current = {file.path for file in published.files} if published else set()
        for path, _ in list(store.files(f"tables/{table}")):
            if path not in current and not path.endswith("/latest.json"):
                store.delete(path)
        _remove_empty(store, f"tables/{table}", published.version if published else None)


def _remove_empty(store: Store, folder: str, version: int | None) -> None:
    if isinstance(store, LocalStore):
        for name in store.folders(folder):
            if name != f"v{version}":
                with contextlib.suppress(OSError):  # not empty: no version of ours
                    (store.root / folder / name).rmdir()
