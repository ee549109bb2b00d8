"""Scores of one embed unit a call: a row a row of its embeddings, null where it has no vector."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.attempt import attempt_unit
from pipeline.embed.beside import read_scored
from pipeline.errors import UnitError
from pipeline.faults import fault_point
from pipeline.fence import Fence
from pipeline.heads.head import Evaluator, Floats, Head, read_spec, read_tensors
from pipeline.rounds import open_table, table_path
from pipeline.runner import Result, Unit
from pipeline.scores.stage import LISTED
from pipeline.storage import open_store
from pipeline.units import Attempt, Output, StageFolder, fingerprints
from schemas.records import UnitRecord
from schemas.tables import SCORES


@dataclass(frozen=True)
class Machine:
    """What heads over pixels run on."""

    download: str
    """Fingerprint of the pool's stage."""
    device: str
    decoders: int


class ScoreWorker:
    """Makes a unit of `scores` of the embed unit of the same name and generation. Close it.

    Memory: one unit's image vectors; with a head over pixels, its model and scores.images.ImageScores.
    """

    def __init__(self, root: str, embed: str, own: str, run: str, machine: Machine | None = None) -> None:
        """`machine`: where there is a head over pixels."""
        self._store = open_store(root)
        self._embed = StageFolder(self._store, "embed", embed)
        self._folder = StageFolder(self._store, "scores", own, Fence(self._store))
        self._run = run
        self._listed = json.loads(self._store.read(f"{self._folder.base}/{LISTED}"))
        self._heads: dict[str, tuple[list[str], Any]] = {}
        """key → its columns, and its Evaluator or, over pixels, the Head"""
        for key in sorted(self._listed["heads"]):
            path = f"{self._folder.base}/heads/{key}"
            spec = read_spec(self._store.read(f"{path}.json"), f"{path}.json")
            head = read_tensors(spec, self._store.read(f"{path}.safetensors"), f"{path}.safetensors")
            self._heads[key] = spec.columns(key), Evaluator(head) if spec.backbone is None else head
        self._machine, self._images = machine, dict[str, Any]()
        """`_images`: key → ImageScores, once an image has to be looked at."""
        self._download = StageFolder(self._store, "download", machine.download) if machine else None
        pixels = [key for key, (_, head) in self._heads.items() if isinstance(head, Head)]
        self._before = {key: [(one, one.generations()) for one in (self._folder, *self._like(key))] for key in pixels}
        names = sorted(column for columns, _ in self._heads.values() for column in columns)
        self._schema = pa.schema([*SCORES, *(pa.field(name, pa.float32()) for name in names)])

    def close(self) -> None:
        for images in self._images.values():
            images.close()

    def run(self, unit: Unit, alone: bool) -> Result:
        """Score and commit one unit; `deferred` where an earlier attempt died and this is not a lone pass."""
        return attempt_unit(self._folder, unit, self._run, alone, self._make)

    def _make(self, attempt: Attempt) -> UnitRecord:
        upstream = self._embed.record(attempt.unit, attempt.generation)
        path = table_path(self._embed, upstream, "embeddings")
        reads = any(isinstance(evaluate, Evaluator) for _, evaluate in self._heads.values())
        vectors = ["image_embedding", "image_norm"] if reads else []
        rows = open_table(self._embed, path).read(columns=["uid", "encoder", "clip_score", *vectors])
        fault_point("mid-scores", attempt.unit)
        columns: dict[str, Any] = {name: rows[name] for name in ("uid", "encoder", "clip_score")}
        columns["weights_sha256"] = pa.repeat(pa.scalar(self._listed["weights_sha256"]), len(rows))
        if reads:
            columns |= self._of_vectors(rows, path)
        for key, (names, head) in self._heads.items():
            if isinstance(head, Head):
                columns |= self._of_images(rows["uid"], key, names, head, attempt, upstream)
        table = pa.table({field.name: columns[field.name] for field in self._schema}, schema=self._schema)
        with self._folder.working(attempt) as scratch:
            local = scratch / "scores.parquet"
            pq.write_table(table, local, compression="zstd", use_dictionary=["encoder", "weights_sha256"])
            digest = hashlib.sha256("".join(entry.sha256 for entry in upstream.files).encode()).hexdigest()
            return self._folder.commit(
                attempt, [Output("scores", local, len(table))], upstream.counts, len(table), digest
            )

    def _of_vectors(self, rows: pa.Table, path: str) -> Mapping[str, pa.Array]:
        """A column an output of each head over vectors. A score that is not finite is null."""
        there, vectors = unit_vectors(rows["image_embedding"])
        norms = rows["image_norm"].to_numpy(zero_copy_only=False)[there].astype(np.float32)
        made: dict[str, Any] = {}
        for columns, evaluate in self._heads.values():
            if not isinstance(evaluate, Evaluator):
                continue
            width = evaluate.layers[0].weight.shape[0]
            if len(vectors) and vectors.shape[1] != width:
                raise UnitError(f"{path}: vectors of {vectors.shape[1]} numbers, head {columns[0]} reads {width}")
            if evaluate.raw and np.isnan(norms).any():
                raise UnitError(f"{path}: has no image_norm for each vector, which head {columns[0]} needs")
            outputs = evaluate(vectors, norms) if len(vectors) else np.empty((0, len(columns)), np.float32)
            scores = np.full((len(rows), len(columns)), np.nan, np.float32)
            scores[there] = outputs
            made |= _columns(columns, scores)
        return made

    def _of_images(
        self, uids: pa.ChunkedArray, key: str, columns: list[str], head: Head, attempt: Attempt, upstream: UnitRecord
    ) -> Mapping[str, pa.Array]:
        """A column an output of a head over pixels: of rows that have it already, as it was; null where the image
        cannot be decoded or is no longer there."""
        known = self._known(key, columns, attempt, upstream)
        scores = np.full((len(uids), len(columns)), np.nan, np.float32)
        places = pc.index_in(uids, known["uid"].combine_chunks())
        for number, column in enumerate(columns):
            scores[:, number] = known[column].take(places).to_numpy(zero_copy_only=False)
        new = uids.filter(pc.is_null(places))
        if len(new):
            rows = self._pool_rows(attempt.unit)
            rows = rows.filter(pc.is_in(rows["uid"], new.combine_chunks()))
            made = self._looking(key, head).run(rows, lambda: fault_point("mid-pixels", attempt.unit))
            mine = pc.index_in(rows["uid"], uids.combine_chunks()).to_numpy(zero_copy_only=False)
            scores[mine] = made
        return _columns(columns, scores)

    def _looking(self, key: str, head: Head) -> Any:
        """What looks at images for a head, made when it is first needed: most have been looked at with the encoder."""
        if key not in self._images:
            from pipeline.heads.pixels import PixelModel
            from pipeline.scores.images import ImageScores

            assert self._machine is not None
            model = PixelModel(head, f"{self._folder.base}/heads/{key}", self._machine.device)
            scaled = self._listed["decode"] == "scaled"
            self._images[key] = ImageScores(self._store.uri, model, scaled, self._machine.decoders)
        return self._images[key]

    def _pool_rows(self, unit: str) -> pa.Table:
        assert self._download is not None
        record = self._download.record(unit, self._download.generations()[unit])
        names = ["uid", "pool_file", "pool_offset", "pool_size", "pool_sha256"]
        rows = open_table(self._download, table_path(self._download, record, "outcomes")).read([*names, "status"])
        return rows.filter(pc.equal(rows["status"], "ok")).select(names)

    def _known(self, key: str, columns: list[str], attempt: Attempt, upstream: UnitRecord) -> pa.Table:
        """uid and columns that the same head gave the unit's rows before: beside the encoder, here, or in other
        folders of scores."""
        tables = [pa.schema([SCORES.field("uid"), *(pa.field(name, pa.float32()) for name in columns)]).empty_table()]
        beside = read_scored(self._embed, upstream, self._listed["heads"][key])
        if beside is not None:
            tables.append(beside.rename_columns(["uid", *columns]))
        for folder, generations in self._before[key]:
            if (generation := generations.get(attempt.unit)) is not None:
                record = folder.record(attempt.unit, generation)
                tables.append(open_table(folder, table_path(folder, record, "scores")).read(["uid", *columns]))
        return pa.concat_tables(tables)

    def _like(self, key: str) -> list[StageFolder]:
        """Other folders of scores that have the same head over pixels decoded the same."""
        found = []
        for fingerprint in fingerprints(self._store, "scores"):
            folder = StageFolder(self._store, "scores", fingerprint)
            tagged = self._store.read_tagged(f"{folder.base}/{LISTED}")
            listed = json.loads(tagged[0]) if tagged and fingerprint != self._folder.fingerprint else {"heads": {}}
            same = listed["heads"].get(key) == self._listed["heads"][key]
            if same and listed["decode"] == self._listed["decode"]:
                found.append(folder)
        return found


def _columns(names: list[str], scores: Floats) -> dict[str, pa.Array]:
    scores = np.where(np.isfinite(scores), scores, np.float32(np.nan))
    return {name: pa.array(scores[:, number], from_pandas=True) for number, name in enumerate(names)}


def unit_vectors(column: pa.ChunkedArray) -> tuple[Any, Floats]:
    """A column of float lists of one length as the mask of rows that have one, and those [n, dim]."""
    lists = column.combine_chunks()
    there = lists.is_valid().to_numpy(zero_copy_only=False)
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return there, flat.reshape(int(there.sum()), -1) if there.any() else np.empty((0, 0), np.float32)
