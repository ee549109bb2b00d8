"""One row's whole story: from its input row to its shard, every fetch, decision and witness on the way."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.retract.tombstone import Tombstones, read_retractions
from pipeline.root import current_folders, read_batches, read_runs, stage_of
from pipeline.rounds import descriptors, read_rounds
from pipeline.storage import Store, locate
from pipeline.tables import SOURCES_OF, open_table, read_published, stamp, unit_files
from pipeline.train.registry import that_saw
from pipeline.units import StageFolder, fingerprints
from schemas.records import Batch, RunRecord, UnitRecord

By = Literal["uid", "key", "url", "sha256"]
Row = dict[str, Any]
"""Of a table, without its nulls."""


class Trace:
    """Looks rows up in a ROOT: in the published tables if they are current, else in the units' own files."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folders = current_folders(store)
        self._stones = Tombstones.load(store)
        self._generations_of: dict[str, dict[str, int]] = {}
        self._batches: dict[str, Batch] = read_batches(store)
        self._runs: dict[str, RunRecord] = {run.run: run for run in read_runs(store)}
        done = {stage: folder.completed() for stage, folder in self._folders.items()}
        self._now = {stage: stamp(self._folders[stage], one) for stage, one in done.items() if one}

    def find(self, by: By, value: str) -> list[Row]:
        """The story of every input row that matches; empty where none does.

        `url` matches the URL as given and as fetched; `sha256` the fetched bytes and the pool image.
        """
        if withdrawn := self._withdrawn(by, value):
            return [withdrawn]
        if by == "key":
            uids = [sample["uid"] for sample in self._samples_of_key(value)]
        elif by == "sha256":
            field = (ds.field("sha256") == value) | (ds.field("pool_sha256") == value)
            uids = [row["uid"] for row in self._look_up("outcomes", field, ["uid"])]
        elif by == "url":
            found = self._look_up("pairs", (ds.field("url") == value) | (ds.field("fetch_url") == value))
            rejects = self._look_up("rejects", ds.field("url") == value)
            return [self._pair(row) for row in found] + [self._reject(row) for row in rejects]
        else:
            uids = [value]
        if not uids:
            return []
        wanted = ds.field("uid").isin(uids)
        stories = [self._pair(row) for row in self._look_up("pairs", wanted)]
        # A duplicate's uid may equal its witness's: by key or bytes the witness alone is meant.
        if by == "uid":
            stories += [self._reject(row) for row in self._look_up("rejects", wanted)]
        return stories

    def _withdrawn(self, by: By, value: str) -> Row | None:
        """When and why it was withdrawn, and nothing else of it."""
        stones = self._stones
        name = stones.url(value) if by == "url" else stones.has(by, value) if by != "key" else None
        if name is None:
            return None
        said = next(one for one in read_retractions(self._store) if one.retraction == name)
        return {"withdrawn": {"retraction": name, "at": said.begun_at, "by": said.who, "why": said.why}}

    def _look_up(self, table: str, wanted: ds.Expression, columns: list[str] | None = None) -> list[Row]:
        published = read_published(self._store, table)
        if published and published.made_from == self._now:
            dataset = open_table(self._store, [file.path for file in published.files], table)
            if rows := _rows(dataset.to_table(filter=wanted, columns=columns)):
                return rows
        return [row for _, row in self._in_units(table, wanted, columns)]

    def _in_units(
        self, table: str, wanted: ds.Expression, columns: list[str] | None = None, batch: str = ""
    ) -> list[tuple[str, Row]]:
        """(unit, row) from the files that current records name."""
        paths: list[str] = []
        for key, folder in self._folders.items():
            if stage_of(key) in SOURCES_OF[table]:
                records = [record for record in folder.iter_records() if record.unit.startswith(batch and f"{batch}-")]
                paths += [source.path for source in unit_files(folder, records, table)]
        dataset = open_table(self._store, paths, table)
        names = [*(columns or dataset.schema.names), "__filename"]
        if isinstance(dataset, ds.InMemoryDataset):
            return []
        found = dataset.to_table(filter=wanted, columns=names).to_pylist()
        return [(row.pop("__filename").rpartition("/")[2].split(".")[0], _bare(row)) for row in found]

    def _pair(self, pair: Row) -> Row:
        uid = pair["uid"]
        outcomes = self._look_up("outcomes", ds.field("uid") == uid)
        unit = outcomes[0]["unit"] if outcomes else self._unit_of("pairs", pair)
        story: Row = {"uid": uid, "input": self._input(pair), "pair": _without(pair, "source", "source_row", "batch")}
        story["unit"] = unit
        story["outcomes"] = list(self._generations(unit, uid))
        story["consent"] = self._look_up("consent", ds.field("uid") == uid)
        story["duplicates"] = self._look_up("rejects", ds.field("dup_of") == uid)
        if outcomes and outcomes[0].get("pool_file"):
            story["pool"] = self._member(outcomes[0])
            story |= self._curation(uid)
        samples, shard_units = [], []
        for sample, base, shard_unit in self._samples_of_uid(uid):
            samples.append(sample)
            shard_units.append((base, shard_unit))
        story["samples"] = samples
        if saw := that_saw(self._store, [uid]):
            story["checkpoints"] = [
                {"checkpoint": path, "steps": steps.get(uid, "cannot be read from here")} for path, steps in saw.items()
            ]
        by_unit = ("ingest", "download", "embed")
        places = [(folder.base, unit) for stage in by_unit for folder in self._all(stage)]
        for folder in [*self._all("dedupe"), *self._all("semantic"), *self._all("select")]:
            rounds = descriptors(read_rounds(folder)).items()
            places += [(folder.base, name) for name, described in rounds if described["reads"] == unit]
        story["runs"] = self._touched_by(pair["batch"], places + shard_units)
        return story

    def _curation(self, uid: str) -> Row:
        """What dedupe and select made of a pool row: its witness or those that gave way to it, overlaps, decision."""
        told: Row = {"hashes": [_without(row, "uid", "pdq_forms") for row in self._of("hashes", uid)]}
        given_up = self._look_up("duplicates", (ds.field("uid") == uid) & (ds.field("level") != "url"))
        if given_up:
            told["duplicate"] = [_without(row, "uid") for row in given_up]
            told["witness"] = self._of("pairs", given_up[0]["dup_of"])
        gone = self._look_up("duplicates", (ds.field("dup_of") == uid) & (ds.field("level") != "url"))
        told["gave_way"] = [_without(row, "dup_of", "group_id") for row in gone]
        told["overlaps"] = [_without(row, "uid") for row in self._of("overlaps", uid)]
        told["scores"] = [_without(row, "uid") for row in self._of("scores", uid)]
        told["decision"] = [_without(row, "uid") for row in self._of("decisions", uid)]
        return told

    def _of(self, table: str, uid: str) -> list[Row]:
        return self._look_up(table, ds.field("uid") == uid)

    def _reject(self, reject: Row) -> Row:
        unit = self._unit_of("rejects", reject)
        story: Row = {"uid": reject.get("uid"), "input": self._input(reject), "unit": unit}
        story["rejected"] = _without(reject, "source", "source_row", "batch", "uid")
        if dup_of := reject.get("dup_of"):
            story["witness"] = self._look_up("pairs", ds.field("uid") == dup_of)
        places = [(folder.base, unit) for folder in self._all("ingest")]
        story["runs"] = self._touched_by(reject["batch"], places)
        return story

    def _input(self, row: Row) -> Row:
        """The input row: its file as the batch recorded it, and the row's number in it."""
        batch = self._batches.get(row["batch"])
        files = [file for file in batch.files if file.source == row["source"]] if batch else []
        told: Row = {"source": row["source"], "source_row": row["source_row"], "batch": row["batch"]}
        if files:
            told["file"] = {"format": files[0].format, "bytes": files[0].bytes, "sha256": files[0].sha256}
        return told

    def _unit_of(self, table: str, row: Row) -> str:
        same = (ds.field("source") == row["source"]) & (ds.field("source_row") == row["source_row"])
        found = self._in_units(table, same, ["source_row"], row["batch"])
        return found[0][0] if found else ""

    def _all(self, stage: str) -> list[StageFolder]:
        return [StageFolder(self._store, stage, name) for name in fingerprints(self._store, stage)]

    def _generations(self, unit: str, uid: str) -> Iterator[Row]:
        """The row's outcome in every generation of its download unit, under every fingerprint, oldest first."""
        for folder in self._all("download"):
            for record in self._records(folder, unit):
                paths = [source.path for source in unit_files(folder, [record], "outcomes")]
                if not all(self._store.size(path) for path in paths):
                    continue  # of an earlier generation, cleaned away
                table = open_table(self._store, paths, "outcomes").to_table(filter=ds.field("uid") == uid)
                for row in _rows(table):
                    told = {"fingerprint": folder.fingerprint, "of_generation": record.generation}
                    yield told | _without(row, "uid", "source", "source_row", "batch", "url", "text", "caption", "unit")

    def _records(self, folder: StageFolder, unit: str) -> Iterator[UnitRecord]:
        """The unit's generations, oldest first; a retraction removes those before it."""
        if folder.base not in self._generations_of:
            self._generations_of[folder.base] = folder.generations()
        for generation in range(self._generations_of[folder.base].get(unit, -1) + 1):
            if (record := folder.committed(unit, generation)) is not None:
                yield record

    def _member(self, outcome: Row) -> Row:
        path, offset, size = outcome["pool_file"], outcome["pool_offset"], outcome["pool_size"]
        told: Row = {"file": path, "offset": offset, "size": size, "sha256": outcome["pool_sha256"]}
        try:
            holder, place = locate(self._store, path)
            data = holder.read_range(place, offset, size)
        except FileNotFoundError:
            return {**told, "verified": "the file is missing"}
        same = hashlib.sha256(data).hexdigest() == outcome["pool_sha256"]
        return {**told, "verified": "sha256 matches" if same else "sha256 does NOT match"}

    def _samples_of_key(self, key: str) -> Iterator[Row]:
        for folder in self._all("shard"):
            for record in folder.records().values():
                for source in unit_files(folder, [record], "samples"):
                    if key.startswith(_shard(source.path)):
                        dataset = self._sample_files([source.path])
                        yield from dataset.to_table(filter=ds.field("key") == key, columns=["uid"]).to_pylist()

    def _samples_of_uid(self, uid: str) -> Iterator[tuple[Row, str, str]]:
        """Each sample made of the row, with the shard folder's base and the unit that made it."""
        for folder in self._all("shard"):
            unit_of = {
                source.path: record.unit
                for record in folder.records().values()
                for source in unit_files(folder, [record], "samples")
            }
            if not unit_of:
                continue
            _, root = self._store.arrow()
            names = ["key", "__filename"]
            for row in (
                self._sample_files(list(unit_of)).to_table(filter=ds.field("uid") == uid, columns=names).to_pylist()
            ):
                path = row["__filename"].removeprefix(f"{root}/")
                tar = path.removesuffix(".parquet") + ".tar"
                file = tar if self._store.size(tar) is not None else path
                yield {"key": row["key"], "shard": _shard(path), "file": file}, folder.base, unit_of[path]

    def _sample_files(self, paths: list[str]) -> ds.Dataset:
        filesystem, root = self._store.arrow()
        schema = pa.schema([("uid", pa.string()), ("key", pa.string())])
        return ds.dataset([f"{root}/{path}" for path in paths], schema=schema, format="parquet", filesystem=filesystem)

    def _touched_by(self, batch: str, places: list[tuple[str, str]]) -> list[Row]:
        """Every run that made the row's batch or left an attempt's mark on one of its units."""
        found: dict[str, list[str]] = {}
        if batch in self._batches:
            found.setdefault(self._batches[batch].run, []).append(f"made batch {batch}")
        for base, unit in places:
            stage, _, fingerprint = base.partition("/")
            for record in self._records(StageFolder(self._store, stage, fingerprint), unit):
                for number in range(1, record.attempt + 1):
                    tagged = self._store.read_tagged(f"{base}/attempts/{unit}.{record.generation}.{number}")
                    if tagged:
                        what = "committed" if number == record.attempt else "tried"
                        run = json.loads(tagged[0])["run"]
                        found.setdefault(run, []).append(f"{what} {base}/units/{unit}.{record.generation}")
        return [self._run(run, what) for run, what in sorted(found.items())]

    def _run(self, run: str, what: list[str]) -> Row:
        record = self._runs.get(run)
        known = {"started_at": record.started_at, "who": record.who, "host": record.host} if record else {}
        return {"run": run, **known, "did": what}


def _shard(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")


def _rows(table: pa.Table) -> list[Row]:
    return [_bare(row) for row in table.to_pylist()]


def _bare(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}
