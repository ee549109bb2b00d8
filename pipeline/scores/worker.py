"""Scores of one embed unit a call: a row a row of its embeddings, null where it has no vector."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.faults import fault_point
from pipeline.heads.head import Evaluator, Floats, read_spec, read_tensors
from pipeline.rounds import open_table, table_path
from pipeline.runner import Result, Unit
from pipeline.scores.stage import LISTED
from pipeline.storage import open_store
from pipeline.units import Attempt, Output, StageFolder
from schemas.records import UnitRecord
from schemas.tables import SCORES


class ScoreWorker:
    """Makes a unit of `scores` of the embed unit of the same name and generation. Memory: one unit's image vectors."""

    def __init__(self, root: str, embed: str, own: str, run: str) -> None:
        self._store = open_store(root)
        self._embed = StageFolder(self._store, "embed", embed)
        self._folder = StageFolder(self._store, "scores", own)
        self._run = run
        listed = json.loads(self._store.read(f"{self._folder.base}/{LISTED}"))
        self._weights = listed["weights_sha256"]
        self._heads = [self._head(key) for key in sorted(listed["heads"])]
        names = sorted(column for columns, _ in self._heads for column in columns)
        self._schema = pa.schema([*SCORES, *(pa.field(name, pa.float32()) for name in names)])

    def _head(self, key: str) -> tuple[list[str], Evaluator]:
        path = f"{self._folder.base}/heads/{key}"
        spec = read_spec(self._store.read(f"{path}.json"), f"{path}.json")
        data = self._store.read(f"{path}.safetensors")
        return spec.columns(key), Evaluator(read_tensors(spec, data, f"{path}.safetensors"))

    def run(self, unit: Unit, alone: bool) -> Result:
        """Score and commit one unit; `deferred` where an earlier attempt died and this is not a lone pass."""
        name, generation = unit["unit"], unit["generation"]
        if (record := self._folder.committed(name, generation)) is not None:
            return _done(record)
        attempt = self._folder.begin(name, generation, self._run, alone)
        with ExitStack() as given_up:
            given_up.callback(self._folder.withdraw, attempt)
            if attempt.suspect and not alone:
                return {"unit": name, "state": "deferred", "rows": 0}
            try:
                record = self._make(attempt)
            except StoreError as error:
                return {"unit": name, "state": "failed", "rows": 0, "error": str(error)}
            given_up.pop_all()
        return _done(record)

    def _make(self, attempt: Attempt) -> UnitRecord:
        upstream = self._embed.record(attempt.unit, attempt.generation)
        path = table_path(self._embed, upstream, "embeddings")
        vectors = ["image_embedding", "image_norm"] if self._heads else []
        rows = open_table(self._embed, path).read(columns=["uid", "encoder", "clip_score", *vectors])
        fault_point("mid-scores", attempt.unit)
        columns = {name: rows[name] for name in ("uid", "encoder", "clip_score")}
        columns["weights_sha256"] = pa.repeat(pa.scalar(self._weights), len(rows))
        columns |= self._columns(rows, path)
        table = pa.table({field.name: columns[field.name] for field in self._schema}, schema=self._schema)
        with self._folder.working(attempt) as scratch:
            local = scratch / "scores.parquet"
            pq.write_table(table, local, compression="zstd", use_dictionary=["encoder", "weights_sha256"])
            digest = hashlib.sha256("".join(entry.sha256 for entry in upstream.files).encode()).hexdigest()
            return self._folder.commit(
                attempt, [Output("scores", local, len(table))], upstream.counts, len(table), digest
            )

    def _columns(self, rows: pa.Table, path: str) -> Mapping[str, pa.Array]:
        """A column an output of each head. A score that is not finite is null."""
        if not self._heads:
            return {}
        there, vectors = unit_vectors(rows["image_embedding"])
        norms = rows["image_norm"].to_numpy(zero_copy_only=False)[there].astype(np.float32)
        made: dict[str, Any] = {}
        for columns, evaluate in self._heads:
            width = evaluate.layers[0].weight.shape[0]
            if len(vectors) and vectors.shape[1] != width:
                raise StoreError(f"{path}: vectors of {vectors.shape[1]} numbers, head {columns[0]} reads {width}")
            if evaluate.raw and np.isnan(norms).any():
                raise StoreError(f"{path}: has no image_norm for each vector, which head {columns[0]} needs")
            outputs = evaluate(vectors, norms) if len(vectors) else np.empty((0, len(columns)), np.float32)
            outputs[~np.isfinite(outputs)] = np.nan
            for column, values in zip(columns, outputs.T, strict=True):
                scores = np.full(len(rows), np.nan, np.float32)
                scores[there] = values
                made[column] = pa.array(scores, from_pandas=True)
        return made


def unit_vectors(column: pa.ChunkedArray) -> tuple[Any, Floats]:
    """A column of float lists of one length as the mask of rows that have one, and those [n, dim]."""
    lists = column.combine_chunks()
    there = lists.is_valid().to_numpy(zero_copy_only=False)
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return there, flat.reshape(int(there.sum()), -1) if there.any() else np.empty((0, 0), np.float32)


def _done(record: UnitRecord) -> Result:
    return {"unit": record.unit, "state": "done", "rows": record.rows, "counts": record.counts}
