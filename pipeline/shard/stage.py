"""The shard stage: survivors of the pool in, training shards out, round by round.

rounds/0001.json  →  units 0001-0000000 …  →  dataset/00000.tar .parquet _stats.json  →  sizes.json, dataset.json
"""

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from pipeline.errors import LeaseLostError, StoreError
from pipeline.runner import Pass, Result, Unit, run_units
from pipeline.shard.plan import naming, next_round, read_rounds, unfinished
from pipeline.shard.pool import PoolMismatchError, PoolReader
from pipeline.shard.rows import RoundRows
from pipeline.shard.writer import write_shard
from pipeline.stop import StopFlag
from pipeline.storage import Store, open_store
from pipeline.units import MAX_LONE_DEATHS, StageFolder, add_counts
from schemas.recipe import FORMAT_VERSION, Recipe, digest
from schemas.records import Round, UnitRecord

log = logging.getLogger(__name__)

FEW = 20_000
"""Samples that are written in this process: sooner (5,600 a second) than a pool's workers start."""


def run_shard(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Finish the round a killed run left, open one for rows no round took, write the dataset's index.

    `folders` has the current folder of every stage. Raises StoreError where the pool does not hold what was recorded.
    """
    download = folders["download"]
    while not stop.is_set():
        rounds = read_rounds(folder)
        missing = unfinished(rounds, folder.generations())
        if missing:
            _make(store, recipe, download, folder, missing, run, stop, report)
        elif (opened := next_round(recipe.shard, download, rounds, run)) is None:
            _write_index(store, recipe, folders, folder, rounds)
            return
        elif not store.create(f"{folder.base}/rounds/{opened.round}.json", opened.to_bytes()):
            raise LeaseLostError(f"{folder.base}/rounds/{opened.round}.json was just written by another run")


def expected(recipe: Recipe, download: StageFolder, folder: StageFolder) -> dict[str, int]:
    """Samples and shards that a run would write now, for --plan: {samples, shards}."""
    rounds = read_rounds(folder)
    units = unfinished(rounds, folder.generations())
    following = next_round(recipe.shard, download, rounds, run="plan")
    units += [dict(unit) for unit in following.units] if following else []
    return {"samples": sum(unit["rows"] for unit in units), "shards": len(units)}


def _make(
    store: Store, recipe: Recipe, download: StageFolder, folder: StageFolder, units: Sequence[Unit], run: str,
    stop: StopFlag, report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Write the units' shards; raises StoreError with the first unit's error once all others are written."""
    failed: list[str] = []

    def heard(result: Result) -> None:
        if result["state"] == "failed":
            failed.append(f"shard unit {result['unit']}: {result['error']}")
        else:
            report(result)

    make = partial(ShardWorker, store.uri, recipe, download.fingerprint, folder.fingerprint, run)
    if sum(unit["rows"] for unit in units) < FEW:
        local = threading.local()

        def run_here(unit: Unit) -> Result:
            if stop.is_set():
                return {"unit": unit["unit"], "state": "stopped", "rows": 0}
            if not hasattr(local, "worker"):
                local.worker = make()
            result: Result = local.worker.run(unit, alone=True)
            return result

        # Two, so that one's disk and hashing overlap the other's work.
        with ThreadPoolExecutor(2) as threads:
            for result in threads.map(run_here, units):
                heard(result)
    else:
        lanes = [[{name: unit[name] for name in ("unit", "generation", "rows")}] for unit in units]
        run_units(recipe, Pass("shard", make), lanes, stop, heard)
    if failed:
        raise StoreError(f"{failed[0]}" + (f" (and {len(failed) - 1} more units)" if len(failed) > 1 else ""))
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
    if tagged and json.loads(tagged[0])["rounds"] == said:
        return
    names = naming(recipe.shard)
    suffix = {"webdataset": ".tar", "parquet": ".parquet", "files": ""}[recipe.shard.output_format]
    shards = (unit for item in rounds for unit in unfinished([item], committed=()))
    sizes = {f"{names.shard(unit['shard'])}{suffix}": unit["rows"] for unit in shards}
    read = {unit: generation for item in rounds for unit, generation in item.upstream.items()}
    with ThreadPoolExecutor(store.parallel_reads) as pool:
        counts = add_counts(pool.map(lambda item: folders["download"].record(*item).counts, sorted(read.items())))
    content: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "samples": sum(item["samples"] for item in said),
        "shards": len(sizes),
        "output_format": recipe.shard.output_format,
        "counts": counts,
        "fingerprints": {stage: one.fingerprint for stage, one in folders.items()},
        "batches": sorted({unit.split("-")[0] for unit in read}),
        "rounds": said,
        "recipe": json.loads(recipe.model_dump_json()),
    }
    store.replace(f"{folder.base}/dataset/sizes.json", _json(sizes))
    # Last, since its presence says that the index is whole.
    store.replace(path, _json(content))


def _done(record: UnitRecord) -> Result:
    return {"unit": record.unit, "state": "done", "rows": record.rows, "counts": record.counts}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


class ShardWorker:
    """Makes one shard a call from a unit's descriptor; holds the order of the windows it sorted last."""

    def __init__(self, root: str, recipe: Recipe, download: str, own: str, run: str) -> None:
        self._store = open_store(root)
        self._recipe = recipe
        self._download = StageFolder(self._store, "download", download)
        self._folder = StageFolder(self._store, "shard", own)
        self._run = run
        self._rounds: dict[str, RoundRows] = {}

    def run(self, unit: Unit, alone: bool) -> Result:
        name: str = unit["unit"]
        if (record := self._folder.committed(name, unit["generation"])) is not None:
            return _done(record)
        attempt = self._folder.begin(name, unit["generation"], self._run, alone)
        with ExitStack() as done, ExitStack() as given_up:
            given_up.callback(self._folder.withdraw, attempt)
            if attempt.suspect and not alone:
                return {"unit": name, "state": "deferred", "rows": 0}
            if attempt.lone_deaths >= MAX_LONE_DEATHS:
                marks = f"{self._store.uri}/{self._folder.base}/attempts/{name}.*"
                raise StoreError(
                    f"shard unit {name}: {attempt.lone_deaths} workers died making it alone, most likely for want of "
                    f"memory; give the workers more, or lower shard.number_sample_per_shard, and remove {marks}"
                )
            # Not from `unit`: Ray Data makes arrays of the lists in what passes through it.
            round_ = self._round(name.split("-")[0])
            described = round_.units[name]
            rows = round_.rows(described)
            scratch = self._store.scratch()
            done.callback(shutil.rmtree, scratch, ignore_errors=True)
            pool = done.enter_context(closing(PoolReader(self._store)))
            try:
                outputs = write_shard(rows, described["shard"], self._recipe, pool, scratch, name)
            except PoolMismatchError as error:
                return {"unit": name, "state": "failed", "rows": 0, "error": str(error)}
            counts = {"ok": {"": rows.num_rows}}
            record = self._folder.commit(attempt, outputs, counts, rows.num_rows, digest(described))
            given_up.pop_all()
        return _done(record)

    def _round(self, name: str) -> RoundRows:
        if name not in self._rounds:
            data = self._store.read(f"{self._folder.base}/rounds/{name}.json")
            self._rounds[name] = RoundRows(self._download, Round.model_validate_json(data))
        return self._rounds[name]
