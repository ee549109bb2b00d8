"""What a ROOT keeps beyond need: old versions of tables, folders of settings no longer in use, leftovers of kills."""

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.faults import fault_point
from pipeline.root import adopted_scores, current_folders, read_runs, stage_of
from pipeline.storage import LocalStore, Store
from pipeline.tables import read_published
from pipeline.units import StageFolder, fingerprints
from schemas.recipe import ORDER
from schemas.tables import TABLES

KEEP = 2
"""Versions of the tables kept: the current one, and the one before it for readers that opened it."""

_VERSION = re.compile(r"version (\d+):")


@dataclass(frozen=True)
class Removal:
    """A folder (its path ends in `/`), a file, or something unfinished, and why it goes."""

    path: str
    files: int
    bytes: int
    why: str


def removals(store: Store, keep: int = KEEP) -> list[Removal]:
    """All that is no longer current, for the holder of the lease.

    Never batches, runs and the lease, nor anything that a current record names: the folders of stages that are
    current, those they were made from, those the newest run began (it may go on), those the tables were made from, and
    adopted scores.
    """
    found = [Removal(entry.path, 1, entry.size, "unfinished") for entry in store.unfinished()]
    found += _versions(store, keep)
    kept = _kept(store)
    for stage in ORDER:
        for name in fingerprints(store, stage):
            if (stage, name) not in kept:
                found.append(_folder(store, f"{stage}/{name}/", "not current"))
                continue
            left = StageFolder(store, stage, name).leftovers()
            found += [Removal(path, 1, size, "of an attempt that did not commit") for path, size in left]
    return found


def remove(store: Store, removal: Removal) -> None:
    """Remove it so that a kill leaves no record of a file that is gone.

    On a disk a folder goes by one rename into scratch; in S3 what says that its files exist goes before them.
    """
    fault_point("before-remove", removal.path)
    if removal.why == "unfinished":
        store.discard(removal.path)
    elif not removal.path.endswith("/"):
        store.delete(removal.path)
    elif isinstance(store, LocalStore):
        folder = store.root / removal.path
        aside = store.scratch()
        folder.rename(aside / folder.name)
        _fsync(folder.parent)
        fault_point("mid-remove", removal.path)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        paths = [path for path, _ in store.files(removal.path)]
        records = [path for path in paths if path == f"{removal.path}complete.json"]
        units = [path for path in paths if path.startswith(f"{removal.path}units/")]
        rest = sorted(set(paths) - {*records, *units})
        with ThreadPoolExecutor(store.parallel_reads) as pool:
            for wave in (records, units, rest):
                list(pool.map(store.delete, wave))
                fault_point("mid-remove", removal.path)


def _versions(store: Store, keep: int) -> Iterator[Removal]:
    """Versions of tables older than the `keep` newest; those above the newest published one were never published, and
    stay until it has passed them, so that their numbers are not given again."""
    named = {table: published for table in TABLES if (published := read_published(store, table))}
    if not named:
        return
    newest = max(published.version for published in named.values())
    there = {table: [name for name in store.folders(f"tables/{table}") if name[1:].isdigit()] for table in TABLES}
    old = sorted({int(name[1:]) for names in there.values() for name in names if int(name[1:]) <= newest})[:-keep]
    views = store.read_tagged("views.sql")
    in_use = {f"v{version}" for version in _VERSION.findall(views[0].decode().partition("\n")[0] if views else "")}
    files = {file.path for published in named.values() for file in published.files}
    for table, names in there.items():
        for name in sorted(names, key=lambda name: int(name[1:])):
            path = f"tables/{table}/{name}/"
            current = table in named and int(name[1:]) == named[table].version
            if (
                int(name[1:]) in old
                and name not in in_use
                and not current
                and not any(f.startswith(path) for f in files)
            ):
                yield _folder(store, path, "old version")


def _kept(store: Store) -> set[tuple[str, str]]:
    """(stage, fingerprint) of every folder that something current reads."""
    kept = {(folder.stage, folder.fingerprint) for folder in current_folders(store).values()}
    kept.add(("embed", adopted_scores(store).fingerprint))
    for table in TABLES:
        if published := read_published(store, table):
            kept.update((stage_of(key), stamp.split(" ")[0]) for key, stamp in published.made_from.items())
    runs = read_runs(store)
    begun: dict[str, str] = {}
    for run in runs:
        begun.update(run.stages)
    kept.update((stage_of(key), name) for key, name in begun.items())
    # A stage's folder belongs to one chain of stages before it, which every run that named it tells.
    for stage, name in tuple(kept):
        chains = [
            run.stages for run in runs if (stage, name) in {(stage_of(key), of) for key, of in run.stages.items()}
        ]
        before = ORDER[: ORDER.index(stage)]
        if chains:
            kept.update((stage_of(key), of) for key, of in chains[-1].items() if stage_of(key) in before)
    return kept


def _folder(store: Store, path: str, why: str) -> Removal:
    sizes = [entry.size for entry in store.files(path.rstrip("/"))]
    return Removal(path, len(sizes), sum(sizes), why)


def _fsync(folder: os.PathLike[str]) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
