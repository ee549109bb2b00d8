"""An adopted batch's scores and vectors as `embed` units: tables `scores` and `embeddings` of its ok rows.

They lie in a folder of their own below embed/, since no recipe made them; one unit a download unit, all encoders in it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.adopt.dataset import Dataset, open_dataset
from pipeline.adopt.names import GIVEN, clip_columns, head_columns, vector_of
from pipeline.adopt.sidecars import Floats, Sidecars, array_names, numbers, read_sidecars
from pipeline.ingest.parquet import open_parquet
from pipeline.root import adopted_scores
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import Output, StageFolder, count
from schemas.records import Batch
from schemas.tables import EMBEDDINGS, SCORES


def columns_of(dataset: Dataset) -> list[str]:
    """Columns that rules see of this download: clip_score, clip_score_<encoder> and heads; empty where it has none."""
    names = {name for shard in dataset.shards for name in shard.columns}
    names |= {name for path in dataset.metadata for name in open_parquet(path).schema_arrow.names}
    encoders = set(clip_columns(names))
    arrays = [*array_names(dataset), *(name for found in dataset.rows.values() for name in found)]
    encoders |= {side[0] for name in arrays if (side := vector_of(name))}
    return [*(f"clip_score_{encoder}" for encoder in sorted(encoders)), *sorted(head_columns(names))]


def run_scores(
    store: Store, batches: Sequence[Batch], download: StageFolder, run: str, stop: StopFlag
) -> StageFolder | None:
    """Commit the missing embed units of adopted batches that carry scores; the folder once all of them are there."""
    folder = adopted_scores(store)
    scored = [batch for batch in batches if batch.adopted and batch.adopted.scores]
    done, ready = folder.generations(), download.generations()
    for batch in scored:
        missing = [unit.unit for unit in batch.units if unit.unit not in done]
        if not missing:
            continue
        if stop.is_set() or any(unit not in ready for unit in missing):
            return None
        assert batch.adopted is not None
        scratch = store.scratch()
        try:
            sidecars = read_sidecars(open_dataset(batch.adopted.path), scratch)
            for unit in missing:
                if stop.is_set():
                    return None
                _commit(store, folder, download, unit, ready[unit], sidecars, run)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder if scored else None


def complete_scores(folder: StageFolder, batches: Sequence[Batch]) -> None:
    """Fold the units into complete.json, as a run does for its stages."""
    names = [batch.batch for batch in batches if batch.adopted and batch.adopted.scores]
    folder.complete(folder.iter_records(), names, None)


def _commit(
    store: Store, folder: StageFolder, download: StageFolder, unit: str, generation: int, sidecars: list[Sidecars],
    run: str,
) -> None:  # fmt: skip
    attempt = folder.begin(unit, 0, run, alone=True)
    record = download.record(unit, generation)
    entry = next(entry for entry in record.files if entry.table == "outcomes")
    outcomes = pq.read_table(pa.BufferReader(store.read(f"{download.base}/{entry.path}")))
    rows = outcomes.filter(pc.equal(outcomes["status"], "ok"))
    vectors, cosines = _embeddings(rows, sidecars)
    with folder.working(attempt) as scratch:
        outputs = []
        for name, table in (("scores", _scores(rows, sidecars, cosines)), ("embeddings", vectors)):
            local: Path = scratch / f"{name}.parquet"
            pq.write_table(table, local, compression="zstd", use_dictionary=["encoder"] if len(table) else False)
            outputs.append(Output(name, local, table.num_rows))
        counts = count(vectors["status"].to_pylist(), vectors["reason"].to_pylist())
        folder.commit(attempt, outputs, counts, vectors.num_rows, entry.sha256)


def _places(rows: pa.Table, sidecars: Sidecars) -> npt.NDArray[np.int64]:
    return sidecars.find(rows["uid" if sidecars.by == "pair" else "src_key"].to_pylist())


def _embeddings(rows: pa.Table, sidecars: list[Sidecars]) -> tuple[pa.Table, dict[str, Floats]]:
    """One row a pair and encoder that has a vector of it; and encoder → the rows' cosines, NaN where there is none."""
    tables = [EMBEDDINGS.empty_table()]
    cosines: dict[str, Floats] = {}
    for group in sidecars:
        places = _places(rows, group)
        for encoder in sorted({encoder for encoder, _ in group.sides()}):
            image, text = (_units(group.vectors((encoder, side), places)) for side in ("image", "text"))
            here = np.flatnonzero(image.given | text.given)
            bad = ((image.given & ~image.whole) | (text.given & ~text.whole))[here]
            cosine = np.full(len(rows), np.nan, np.float32)
            if image.values.shape == text.values.shape:
                both = np.einsum("ij,ij->i", image.values, text.values)
                cosines[encoder] = cosine = np.where(image.whole & text.whole, both, np.nan).astype(np.float32)
            columns = {
                "uid": rows["uid"].take(pa.array(here)),
                "encoder": pa.repeat(pa.scalar(encoder), len(here)),
                "status": pa.array(np.where(bad, "failed", "ok"), pa.string()),
                "reason": pa.array(np.where(bad, "internal", ""), pa.string(), mask=~bad),
                "detail": pa.array(np.where(bad, "vector without a direction", ""), pa.string(), mask=~bad),
                "clip_score": pa.array(cosine[here], pa.float32(), from_pandas=True),
                "image_norm": pa.nulls(len(here), pa.float32()),
                "image_embedding": image.listed(here, bad),
                "text_embedding": text.listed(here, bad),
            }
            tables.append(pa.table({name: columns[name] for name in EMBEDDINGS.names}, schema=EMBEDDINGS))
    return pa.concat_tables(tables), cosines


@dataclass(frozen=True)
class _Units:
    """Vectors of length 1, rows × dimensions; rows that are not `whole` are zero."""

    values: Floats
    given: npt.NDArray[np.bool_]
    whole: npt.NDArray[np.bool_]

    def listed(self, rows: npt.NDArray[np.int64], bad: npt.NDArray[np.bool_]) -> pa.Array:
        there = self.whole[rows] & ~bad
        dimensions = self.values.shape[1]
        offsets = np.concatenate(([0], np.cumsum(there))) * dimensions
        flat = pa.array(self.values[rows[there]].reshape(-1), pa.float32())
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, mask=pa.array(~there))


def _units(found: tuple[Floats, npt.NDArray[np.bool_]]) -> _Units:
    """A vector without a direction (zero, NaN, infinite) is none."""
    values, given = found
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    whole = given & (lengths > 0) & np.isfinite(lengths)
    values[~whole] = 0
    values[whole] /= lengths[whole, None].astype(np.float32)
    return _Units(values, given, whole)


def _scores(rows: pa.Table, sidecars: list[Sidecars], cosines: dict[str, Floats]) -> pa.Table:
    """One row a pair and encoder with a score of it. Heads, which name no encoder, are repeated in each of its rows."""
    clips = dict(cosines)
    heads: dict[str, Floats] = {}

    def put(into: dict[str, Floats], name: str, values: Floats) -> None:
        into[name] = np.where(np.isnan(into[name]), values, into[name]) if name in into else values

    given: dict[str, Floats] = {}
    own = [name.removeprefix("src_") for name in rows.column_names if name.startswith("src_")]
    for encoder, column in clip_columns(own).items():
        put(given, encoder, numbers(rows[f"src_{column}"]))
    for head, column in head_columns(own).items():
        put(heads, head, numbers(rows[f"src_{column}"]))
    for group in sidecars:
        places = _places(rows, group)
        for kind, name in group.scores:
            put(given if kind == "clip" else heads, name, group.score((kind, name), places))
    # A score that came with the download is the one its publishers filtered by; ours fills its gaps.
    for encoder, values in given.items():
        clips[encoder] = np.where(np.isnan(values), clips.get(encoder, values), values)
    return _table(rows["uid"], clips, heads)


def _table(uids: pa.ChunkedArray, clips: dict[str, Floats], heads: dict[str, Floats]) -> pa.Table:
    fields = [*SCORES, *(pa.field(name, pa.float32()) for name in sorted(heads))]
    headed = np.logical_or.reduce([~np.isnan(values) for values in heads.values()]) if heads else None
    tables = []
    for encoder, values in sorted(clips.items()) or [(GIVEN, np.full(len(uids), np.nan, np.float32))]:
        there = ~np.isnan(values)
        keep = np.flatnonzero(there if headed is None else there | headed)
        columns = {
            "uid": uids.take(pa.array(keep)),
            "encoder": pa.repeat(pa.scalar(encoder), len(keep)),
            "clip_score": pa.array(values[keep], pa.float32(), from_pandas=True),
            "weights_sha256": pa.nulls(len(keep), pa.string()),
        }
        columns |= {name: pa.array(heads[name][keep], pa.float32(), from_pandas=True) for name in heads}
        tables.append(pa.table({field.name: columns[field.name] for field in fields}).cast(pa.schema(fields)))
    return pa.concat_tables(tables)
