"""Handmade ROOTs with scores and vectors of two encoders, as an adopted download brings them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.root import adopted_scores
from pipeline.rounds import open_table, table_path
from pipeline.tables import publish
from pipeline.units import Output
from schemas.recipe import ORDER
from schemas.tables import EMBEDDINGS, SCORES
from tests.handmade import HandmadeRoot

ENCODERS = {"b32": 8, "l14": 12}
"""name → dimensions"""
HEAD = "aesthetic"
"""A head of the last encoder."""


def vectors(uid: str, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    """Image and text vector of a pair, float32 of unit length: the uid decides them."""
    generator = np.random.default_rng([int(uid[:8], 16), ENCODERS[encoder]])
    both = generator.normal(size=(2, ENCODERS[encoder])) + 0.5
    image, text = (both / np.linalg.norm(both, axis=1, keepdims=True)).astype(np.float32)
    return image, text


def cosine(uid: str, encoder: str) -> float:
    image, text = vectors(uid, encoder)
    return float(np.float32(image @ text))


def head(uid: str) -> float:
    return float(np.float32(int(uid[-4:], 16) / 6554))


class ScoredRoot(HandmadeRoot):
    """Every ok row has a vector and a score of both encoders, but rows whose source_row ends in 6 none of l14's."""

    def finish(self) -> int | None:
        self.complete("ingest", "download")
        self.score()
        super().finish()
        return publish(self.store, ORDER)

    def _pair(self, batch: str, number: int, kept: bool) -> dict[str, Any]:
        return super()._pair(batch, number, kept) | {"lang": "de" if number % 4 else "en", "lang_score": 0.9}

    def score(self) -> None:
        folder, download = adopted_scores(self.store), self.folders["download"]
        done = folder.generations()
        for record in download.iter_records():
            if record.unit in done:
                continue
            outcomes = open_table(download, table_path(download, record, "outcomes")).read()
            rows = [row for row in outcomes.to_pylist() if row["status"] == "ok"]
            scratch = self.store.scratch()
            outputs = []
            attempt = folder.begin(record.unit, 0, "handmade", alone=False)
            for name, table in (("scores", _scores(rows)), ("embeddings", _embeddings(rows))):
                pq.write_table(table, scratch / f"{name}.parquet")
                outputs.append(Output(name, scratch / f"{name}.parquet", table.num_rows))
            counts = {"ok": {"": outputs[1].rows}} if outputs[1].rows else {}
            folder.commit(attempt, outputs, counts, outputs[1].rows, "handmade")
        folder.complete(folder.records(), list(self._batches), None)


def has(row: dict[str, Any], encoder: str) -> bool:
    """Whether an ok row was embedded."""
    return encoder == "b32" or row["source_row"] % 10 != 6


def _scores(rows: list[dict[str, Any]]) -> pa.Table:
    told = [
        {"uid": row["uid"], "encoder": encoder, "clip_score": cosine(row["uid"], encoder),
         HEAD: head(row["uid"]) if encoder == "l14" else None}
        for row in rows for encoder in ENCODERS if has(row, encoder)
    ]  # fmt: skip
    return pa.Table.from_pylist(told, schema=SCORES.append(pa.field(HEAD, pa.float32())))


def _embeddings(rows: list[dict[str, Any]]) -> pa.Table:
    told = []
    for row in rows:
        for encoder in ENCODERS:
            if has(row, encoder):
                image, text = (vector.tolist() for vector in vectors(row["uid"], encoder))
                told.append({
                    "uid": row["uid"], "encoder": encoder, "status": "ok", "clip_score": cosine(row["uid"], encoder),
                    "image_embedding": image, "text_embedding": text,
                })  # fmt: skip
    return pa.Table.from_pylist(told, schema=EMBEDDINGS)
