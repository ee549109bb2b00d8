"""The long table of results: a row a number."""

import difflib
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.errors import InputError

RESULTS: Final = pa.schema(
    [
        ("run", pa.string()),  # when it was begun and of what model
        ("model", pa.string()),  # as given
        ("checkpoint_sha256", pa.string()),  # of the weights
        ("suite", pa.string()),
        ("task", pa.string()),  # the dataset
        ("setting", pa.string()),  # zero_shot, zero_shot_names, probe, few_shot_4, raw_pixels, chance, retrieval, …
        ("metric", pa.string()),
        ("group", pa.string()),  # of audits and worst_group; else null
        ("value", pa.float64()),
        ("ci_low", pa.float64()),  # of the interval, where the number has one
        ("ci_high", pa.float64()),
        ("ci_level", pa.float64()),
        ("n", pa.int64()),  # images, or texts, it was measured on
        ("main", pa.bool_()),  # the task's metric in summaries
        ("note", pa.string()),
    ]
)


@dataclass(frozen=True)
class Row:
    task: str
    setting: str
    metric: str
    value: float | None
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    ci_level: float | None = None
    group: str | None = None
    main: bool = False
    note: str | None = None


@dataclass(frozen=True)
class Run:
    """What every row of a run says alike."""

    run: str
    model: str
    checkpoint_sha256: str
    suite: str
    rows: list[Row] = field(default_factory=list)

    def table(self) -> pa.Table:
        alike = {"run": self.run, "model": self.model, "checkpoint_sha256": self.checkpoint_sha256, "suite": self.suite}
        return pa.Table.from_pylist([alike | asdict(row) for row in self.rows], schema=RESULTS)


def write(table: pa.Table, out: Path) -> None:
    """results.parquet and results.csv."""
    parquet, csv = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, compression="zstd")
    pyarrow.csv.write_csv(table, csv)
    replace(out / "results.csv", csv.getvalue())
    replace(out / "results.parquet", parquet.getvalue())


def replace(path: Path, data: bytes) -> None:
    """A file written whole, or left as it was."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"--out {path.parent}: {path.name} cannot be written: {error.strerror}") from None


def read(place: str) -> pa.Table:
    """The results of a run: its folder, or a results.parquet. Raises InputError."""
    path = Path(place)
    path = path / "results.parquet" if path.is_dir() else path
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"--compare {place}: {path} holds no results: {' '.join(str(error).split())[:160]}") from None
    missing = [name for name in RESULTS.names if name not in table.column_names]
    if missing:
        near = difflib.get_close_matches(missing[0], table.column_names, n=1)
        raise InputError(f"--compare {place}: {path} has no column {missing[0]}{f' (but {near[0]})' if near else ''}")
    return table.select(RESULTS.names).cast(RESULTS)


def summary(tables: Sequence[pa.Table]) -> list[dict[str, object]]:
    """Main rows of all runs side by side: task, setting, metric and a value a run."""
    found: dict[tuple[str, str, str], dict[str, object]] = {}
    for number, table in enumerate(tables):
        for row in table.to_pylist():
            if row["main"]:
                key = (row["task"], row["setting"], row["metric"])
                line = found.setdefault(key, {"task": key[0], "setting": key[1], "metric": key[2]})
                line[f"run {number}"] = row
    return list(found.values())
