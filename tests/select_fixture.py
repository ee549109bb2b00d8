"""What `select` reads, written by hand and without images: rows of any number, vectors and scores of an encoder."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dedupe.stage import run_dedupe
from pipeline.rounds import open_table, table_path
from pipeline.select.stage import run_select
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, Store
from pipeline.units import Output, StageFolder
from schemas.recipe import Recipe, parse_recipe
from schemas.tables import EMBEDDINGS, OUTCOMES, PAIRS, SCORES

ENCODER = "l14"


def asked(encoders: Sequence[str] = (), dedupe: dict[str, Any] | None = None, **select: Any) -> Recipe:
    """A recipe of `select` alone; its encoders' vectors and scores are written by hand."""
    embed = {"encoders": [{"name": name, "weights": "untrained", "arch": "ViT-B-32"} for name in encoders]}
    return parse_recipe({"dedupe": dedupe or {"levels": {}}, "embed": embed, "select": select}, "test")


def uid(number: int) -> str:
    return f"{number:032x}"


class Scored:
    """Rows are numbered; what is not given of a row is null, but for its uid and text."""

    def __init__(self, root: Path | Store) -> None:
        self.store: Store = LocalStore(root) if isinstance(root, Path) else root
        self.folders = {stage: StageFolder(self.store, stage, "a0") for stage in ("download", "dedupe")}
        self._units = 0

    def rows(
        self, numbers: Sequence[int], parts: int = 1, columns: Mapping[str, Callable[[int], Any]] | None = None,
        scores: Mapping[str, Callable[[int], float | None]] | None = None,
        vectors: Callable[[int, str], list[float] | None] = lambda number, encoder: [1.0, 0.0],
        heads: Mapping[str, Callable[[int], float | None]] | None = None,
    ) -> "Scored":  # fmt: skip
        """Download units with these rows, in `parts` of equal size. `scores`: encoder → score of a number."""
        ends = np.linspace(0, len(numbers), parts + 1).astype(int)
        for first, last in pairwise(ends):
            name = f"0001-{self._units:07d}"
            self._units += 1
            part = [int(number) for number in numbers[first:last]]
            made = {"text": lambda number: f"text {number}", **(columns or {})}
            given = {
                "uid": [uid(number) for number in part], "status": ["ok"] * len(part), "generation": [0] * len(part),
                "unit": [name] * len(part), "batch": ["0001"] * len(part),
                **{column: [make(number) for number in part] for column, make in made.items()},
            }  # fmt: skip
            self._write("download", name, "outcomes", _table(given, OUTCOMES))
            if set(given) - set(OUTCOMES.names):
                self._write("ingest", name, "pairs", _table(given, PAIRS))
            for encoder, score in (scores or {}).items():
                embedded = [(number, vector) for number in part if (vector := vectors(number, encoder)) is not None]
                ok = {"uid": [uid(number) for number, _ in embedded], "encoder": [encoder] * len(embedded)}
                found = [score(number) for number, _ in embedded]
                table = {
                    **ok, "status": ["ok" if vector else "failed" for _, vector in embedded], "clip_score": found,
                    "image_embedding": [vector or None for _, vector in embedded],
                }  # fmt: skip
                self._write(f"embed/{encoder}", name, "embeddings", _table(table, EMBEDDINGS))
                scored = _table({**ok, "clip_score": found}, SCORES)
                for head, of in (heads or {}).items():
                    scored = scored.append_column(head, pa.array([of(number) for number, _ in embedded], pa.float32()))
                self._write(f"scores/{encoder}", name, "scores", scored)
        return self

    def run(self, recipe: Recipe, run: str = "run", fingerprint: str = "b0") -> "Scored":
        """`dedupe`, without a level of its own, and `select`."""
        stop = StopFlag(self.store.uri, run)
        self.folders["select"] = StageFolder(self.store, "select", fingerprint)
        for stage, work in (("dedupe", run_dedupe), ("select", run_select)):
            work(self.store, recipe, self.folders, self.folders[stage], run, stop, lambda result: None)
        return self

    def adopt(self, *keys: str) -> None:
        """Take folders that another process wrote."""
        for key in keys:
            self.folders[key] = StageFolder(self.store, key.partition("/")[0], _print(key))

    def run_of(self, fingerprint: str) -> StageFolder:
        return StageFolder(self.store, "select", fingerprint)

    def decisions(self) -> dict[int, dict[str, Any]]:
        """number → its decision."""
        folder = self.folders["select"]
        found = {}
        for record in folder.records().values():
            for row in open_table(folder, table_path(folder, record, "decisions")).read().to_pylist():
                assert int(row["uid"], 16) not in found
                found[int(row["uid"], 16)] = row
        return found

    def kept(self) -> set[int]:
        return {number for number, row in self.decisions().items() if row["kept"]}

    def drop(self, reason: str) -> set[int]:
        """Numbers of the rows that this dropped."""
        return {number for number, row in self.decisions().items() if row["dropped_by"] == reason}

    def _write(self, key: str, unit: str, name: str, table: pa.Table) -> None:
        folder = self.folders.setdefault(key, StageFolder(self.store, key.partition("/")[0], _print(key)))
        scratch = self.store.scratch() / f"{name}.parquet"
        pq.write_table(table, scratch)
        attempt = folder.begin(unit, 0, "fixture", alone=False)
        rows = table.num_rows
        ok = rows if "status" not in table.column_names else pc.sum(pc.equal(table["status"], "ok")).as_py() or 0
        counts = {"ok": {"": ok}} | ({"failed": {"decode_error": rows - ok}} if rows > ok else {})
        folder.commit(attempt, [Output(name, scratch, rows)], counts, rows, "fixture")


def _print(key: str) -> str:
    return key.encode().hex()[-16:]


def _table(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.Table:
    rows = len(columns["uid"])
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)
