"""The shard stage: survivors of the pool in, training shards out, round by round.

rounds/0001.json  →  units 0001-0000000 …  →  dataset/00000.tar .parquet _stats.json  →  sizes.json, dataset.json

With shard.mode index there are no tars: S.parquet says where each image lies in the pool.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

from pipeline.attempt import attempt_unit
from pipeline.errors import StoreError
from pipeline.fence import Fence
from pipeline.rounds import descriptors, open_round, read_rounds, unfinished
from pipeline.runner import Pass, Result, Unit, failures_last, run_here, run_units
from pipeline.shard.plan import naming, next_round
from pipeline.shard.pool import PoolReader
from pipeline.shard.rows import RoundRows
from pipeline.shard.writer import write_shard
from pipeline.stop import StopFlag
from pipeline.storage import Store, open_store
from pipeline.units import MAX_LONE_DEATHS, Attempt, StageFolder, add_counts
from schemas.recipe import FORMAT_VERSION, Recipe, digest
from schemas.records import Counts, Round, UnitRecord

log = logging.getLogger(__name__)

FEW = 20_000
FEW_INDEXED = 400_000
"""Samples that are written in this process: sooner (5,600 a second, 100,000 to an index) than workers start."""


def run_shard(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Finish the round a killed run left, open one for rows no round took, write the dataset's index.

    `folders` has the current folder of every stage. Raises StoreError where the pool does not hold what was recorded.
    """
    download, select = folders["download"], folders["select"]
    while not stop.is_set():
        rounds = read_rounds(folder)
        missing = unfinished(rounds, folder.generations())
        if missing:
            _make(store, recipe, folders, folder, missing, run, stop, report)
        elif (opened := next_round(recipe.shard, download, select, rounds, run)) is None:
            _write_index(store, recipe, folders, folder, rounds)
            return
        else:
            open_round(folder, opened)


def expected(recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder) -> dict[str, int]:
    """Samples and shards that the stage would write now, after what select has decided: {samples, shards}."""
    rounds = read_rounds(folder)
    units = unfinished(rounds, folder.generations())
    following = next_round(recipe.shard, folders["download"], folders["select"], rounds, run="plan")
    units += [dict(unit) for unit in following.units] if following else []
    return {"samples": sum(unit["rows"] for unit in units), "shards": len(units)}


def _make(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, units: Sequence[Unit],
    run: str, stop: StopFlag, report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Write the units' shards; raises StoreError with the first unit's error once all others are written."""
    names = {stage: one.fingerprint for stage, one in folders.items()}
    make = partial(ShardWorker, store.uri, recipe, {**names, "shard": folder.fingerprint}, run)
    few = FEW_INDEXED if recipe.shard.mode == "index" else FEW
    with failures_last("shard", report) as heard:
        if sum(unit["rows"] for unit in units) < few:
            run_here(make, units, stop, heard)
        else:
            lanes = [[{name: unit[name] for name in ("unit", "generation", "rows")}] for unit in units]
            run_units(recipe, Pass("shard", make), lanes, stop, heard)
    if not stop.is_set() and (left := unfinished(read_rounds(folder), folder.generations())):
        raise StoreError(f"{folder.base}: {len(left)} units ended without a record, {left[0]['unit']} first")


def _write_index(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, rounds: Sequence[Round]
) -> None:
    """sizes.json, which open_clip reads beside the shards, and dataset.json; neither is touched if it says the same."""
    said = [
        {"round": item.round, "units_read": len(item.upstream), "shards": len(item.units),
         "samples": sum(unit["rows"] for unit in item.units if isinstance(unit["rows"], int))}
        for item in rounds
    ]  # fmt: skip
    path = f"{folder.base}/dataset/dataset.json"
    tagged = store.read_tagged(path)
    before = json.loads(tagged[0]) if tagged else {}
    if before.get("rounds") == said:
        return
    names = naming(recipe.shard)
    form = "parquet" if recipe.shard.mode == "index" else recipe.shard.output_format
    suffix = {"webdataset": ".tar", "parquet": ".parquet", "files": ""}[form]
    shards = (unit for item in rounds for unit in unfinished([item], committed=()))
    sizes = {f"{names.shard(unit['shard'])}{suffix}": unit["rows"] for unit in shards}
    content: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "samples": sum(item["samples"] for item in said),
        "shards": len(sizes),
        "mode": recipe.shard.mode,
        "output_format": form,
        **upstream_counts(folders["download"], folders["select"], rounds),
        "fingerprints": {stage: one.fingerprint for stage, one in folders.items()},
        "rounds": said,
        "recipe": json.loads(recipe.model_dump_json()),
        **({"retractions": before["retractions"]} if "retractions" in before else {}),
    }
    store.replace(f"{folder.base}/dataset/sizes.json", _json(sizes))
    # Last, since its presence says that the index is whole.
    store.replace(path, _json(content))


def upstream_counts(download: StageFolder, select: StageFolder, rounds: Sequence[Round]) -> dict[str, Any]:
    """What dataset.json says of what the rounds read: `counts` of outcomes and of `decisions`, and `batches`."""
    known = descriptors(read_rounds(select))
    read = {unit: generation for item in rounds for unit, generation in item.upstream.items()}
    outcomes = {known[unit]["reads"]: known[unit]["reads_generation"] for unit in sorted(read)}

    def total(folder: StageFolder, units: dict[str, int]) -> Counts:
        now = folder.generations()
        with ThreadPoolExecutor(folder.store.parallel_reads) as pool:
            # A generation that is gone has left its rows, less those withdrawn, to the current one.
            found = pool.map(lambda u: folder.committed(u, units[u]) or folder.record(u, now[u]), sorted(units))
            return add_counts(record.counts for record in found)

    return {
        "counts": total(download, outcomes), "decisions": total(select, read),
        "batches": sorted({unit.split("-")[0] for unit in outcomes}),
    }  # fmt: skip


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


class ShardWorker:
    """Makes one shard a call from a unit's descriptor; holds the order of the windows it sorted last."""

    def __init__(self, root: str, recipe: Recipe, fingerprints: Mapping[str, str], run: str) -> None:
        """`fingerprints`: of every stage of the run, by the keys of its folders."""
        self._store = open_store(root)
        self._recipe = recipe
        self._folders = {
            stage: StageFolder(self._store, stage.partition("/")[0], name) for stage, name in fingerprints.items()
        }
        self._folder = StageFolder(self._store, "shard", fingerprints["shard"], Fence(self._store))
        self._run = run
        self._rounds: dict[str, RoundRows] = {}

    def run(self, unit: Unit, alone: bool) -> Result:
        return attempt_unit(self._folder, unit, self._run, alone, self._make)

    def _make(self, attempt: Attempt) -> UnitRecord:
        name = attempt.unit
        if attempt.lone_deaths >= MAX_LONE_DEATHS:
            marks = f"{self._store.uri}/{self._folder.base}/attempts/{name}.*"
            raise StoreError(
                f"shard unit {name}: {attempt.lone_deaths} workers died making it alone, most likely for want of "
                f"memory; give the workers more, or lower shard.number_sample_per_shard, and remove {marks}"
            )
        # Not from the unit: Ray Data makes arrays of the lists in what passes through it.
        round_ = self._round(name.split("-")[0])
        described = round_.units[name]
        rows = round_.rows(described)
        with self._folder.working(attempt) as scratch, closing(PoolReader(self._store)) as pool:
            outputs = write_shard(rows, described["shard"], self._recipe, pool, scratch, name)
            counts = {"ok": {"": rows.num_rows}}
            return self._folder.commit(attempt, outputs, counts, rows.num_rows, digest(described))

    def _round(self, name: str) -> RoundRows:
        if name not in self._rounds:
            data = self._store.read(f"{self._folder.base}/rounds/{name}.json")
            self._rounds[name] = RoundRows(self._folders, Round.model_validate_json(data))
        return self._rounds[name]
