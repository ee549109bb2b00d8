"""The whole verification: records first, then unit by unit, then what only all units together can show."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.retract.tombstone import Tombstones, unfinished_retraction
from pipeline.rounds import read_rounds
from pipeline.storage import Store
from pipeline.verify.adopted import check_images, check_tars, tars_of
from pipeline.verify.curated import check_chosen, check_curated
from pipeline.verify.curated import made_from as curated_from
from pipeline.verify.dataset import check_index, check_members, made_from, read_samples, shard_name
from pipeline.verify.embedded import check_embedded
from pipeline.verify.files import check_hash, check_pool, check_size, chosen
from pipeline.verify.keys import Keys
from pipeline.verify.ordered import THREADS, ordered
from pipeline.verify.published import check_published
from pipeline.verify.report import Report
from pipeline.verify.state import Folder, State, read_state
from pipeline.verify.sums import check_sums
from pipeline.verify.units import UnitTables, read_download_unit, read_ingest_unit
from pipeline.verify.withdrawn import check_withdrawn
from schemas.records import UnitRecord


def verify(store: Store, share: float = 1.0) -> Report:
    """Prove the invariants of a ROOT.

    `share` of its files (and, in pool tars left out, of their members) are read whole and hashed: 1 proves every
    byte, 0 reads records, sizes and the tables' keys alone. Memory is bounded by a few units and shards.
    """
    report = Report(store.uri)
    if retraction := unfinished_retraction(store):
        told = f"retraction {retraction.retraction} is unfinished; run jobs.retract or jobs.build again to finish it"
        report.check(1, "retractions are finished").add(1, [told])
        return report
    state = read_state(store)
    check_sums(state, report)
    readable = report.check(4, "records can be read")
    readable.add(sum(len(folder.all) for folder in state.folders))
    for path in state.damaged:
        readable.add(1, [f"{path}: is no whole record"])
    sizes = report.check(4, "recorded files are there, whole")
    for path, entry in state.recorded():
        sizes.add(1, check_size(state, path, entry))
    if any(batch.adopted for batch in state.batches.values()):
        breaches, looked = check_tars(state)
        report.check(4, "adopted tars are where they were").add(looked, breaches)
    hashed: set[str] = set()
    with Keys() as keys, ThreadPoolExecutor(THREADS) as pool:
        keys.add_batches(state.batches)
        shard = state.current.get("shard")
        stages = made_from(store, shard) if shard else {}
        made = curated_from(state, stages)
        current = state.current.get("download")
        source = made[0].download if made else (current.base if current else "")
        _units(state, report, keys, pool, share, hashed, {source, *(one.download for one in made)})
        keys.check_rows(report.check(1, "input rows have one outcome each"))
        keys.check_uids(report.check(1, "uids are unique"))
        keys.check_witnesses(report.check(3, "duplicates have a witness that stayed"))
        known: set[str] = set()
        for one in made:
            check_curated(state, one, report, keys, pool, known)
            check_embedded(store, one, report, keys, pool, share, known)
        if shard:
            _dataset(state, shard, report, keys, pool, share, hashed, source)
            if made:
                check_chosen(made[0], report, keys)
        _hashes(state, report, pool, share, hashed)
    check_published(state, report, share)
    if unrecorded := state.unrecorded():
        report.notes.append(f"{unrecorded} files that no record names (left by a kill; the next run sweeps them)")
    return report


def _units(
    state: State, report: Report, keys: Keys, pool: ThreadPoolExecutor, share: float, hashed: set[str],
    sources: Collection[str],
) -> None:  # fmt: skip
    """Each unit's tables and pool; `sources` are further download folders, which something was made from."""
    ingest = state.current.get("ingest")
    downloads = [
        folder for folder in state.folders if folder is state.current.get("download") or folder.base in sources
    ]
    names = sorted({unit for folder in (ingest, *downloads) if folder for unit in folder.current})
    rows, members = report.check(1, "tables agree with their records"), report.check(2, "pool members")
    files = report.check(4, "recorded files are there, whole")

    def read(name: str) -> list[tuple[Folder, UnitTables, int]]:
        found = []
        pairs: pa.Table | None = None
        if ingest and name in ingest.current:
            unit = read_ingest_unit(state.store, ingest, ingest.current[name])
            pairs = unit.pairs
            found.append((ingest, unit, 0))
        for folder in downloads:
            if name in folder.current:
                found.append((folder, *_download_unit(state, folder, folder.current[name], pairs, share)))
        return found

    stones = Tombstones.load(state.store)
    for found in ordered(pool, read, names):
        for folder, unit, count in found:
            if stones:
                report.check(1, "nothing withdrawn is there").add(1, check_withdrawn(stones, unit))
            tables = [table for table in (unit.pairs, unit.rejects, unit.outcomes) if table is not None]
            rows.add(sum(table.num_rows for table in tables), unit.rows)
            members.add(count, unit.pool)
            files.add(0, unit.files)
            if unit.pairs is not None:
                keys.add("pairs", unit.pairs)
            if unit.rejects is not None:
                keys.add("rejects", unit.rejects)
            if unit.outcomes is not None:
                ok = unit.outcomes.filter(pc.equal(unit.outcomes["status"], "ok"))
                keys.add("outcomes", ok.append_column("folder", pa.repeat(pa.scalar(folder.base), ok.num_rows)))
    for folder in downloads:
        hashed.update(
            path
            for record in folder.current.values()
            for entry in folder.files(record, "pool")
            if chosen(path := f"{folder.base}/{entry.path}", share)
        )


def _download_unit(
    state: State, folder: Folder, record: UnitRecord, pairs: pa.Table | None, share: float
) -> tuple[UnitTables, int]:
    store = state.store
    adopted = tars_of(state.batches.get(record.unit.partition("-")[0]))
    unit = read_download_unit(store, folder, record, pairs, adopted)
    if unit.outcomes is None:
        return unit, 0
    breaches, files, count = check_pool(store, folder, record, unit.outcomes, share)
    unit.pool += breaches
    unit.files += files
    if adopted:
        breaches, images = check_images(store, unit.outcomes, share)
        unit.pool += breaches
        count += images
    return unit, count


def _dataset(
    state: State, shard: Folder, report: Report, keys: Keys, pool: ThreadPoolExecutor, share: float,
    hashed: set[str], source: str,
) -> None:  # fmt: skip
    """The dataset's samples against the outcomes, and the members of its shards against its samples."""
    store = state.store
    samples, members = report.check(5, "samples trace back"), report.check(5, "members of samples")
    files = report.check(4, "recorded files are there, whole")
    keys.add_rounds(read_rounds(shard.folder))
    for table, breaches in ordered(pool, lambda record: read_samples(store, shard, record), shard.current.values()):
        samples.add(0, breaches)
        if table is not None:
            keys.add("samples", table)
    keys.check_samples(samples, source)
    samples.add(0, check_index(state, shard))
    records = {shard_name(record): record for record in shard.current.values()}
    work = ((records[name], rows) for name, rows in keys.samples(source))
    for breaches, broken, count in ordered(
        pool, lambda item: check_members(store, shard, item[0], item[1], share), work
    ):
        members.add(count, breaches)
        files.add(0, broken)
    hashed.update(
        path
        for record in shard.current.values()
        for entry in shard.files(record, "tar")
        if record.rows and chosen(path := f"{shard.base}/{entry.path}", share)
    )


def _hashes(state: State, report: Report, pool: ThreadPoolExecutor, share: float, hashed: set[str]) -> None:
    """Hash the recorded files that no earlier check has read whole."""
    check = report.check(4, "sha256 of recorded files")
    check.add(len(hashed))
    left = (item for item in state.recorded() if item[0] not in hashed and chosen(item[0], share))
    for breaches in ordered(pool, lambda item: check_hash(state.store, *item), left):
        check.add(1, breaches)
