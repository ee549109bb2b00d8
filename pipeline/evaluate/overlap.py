"""Did test images that were trained on matter? Accuracy on Overlap, Clean and All (Radford et al. 2021, section 5)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.evaluate.intervals import binomial_tail, clopper_pearson
from pipeline.evaluate.results import Row

LEVEL = 0.995
COLUMNS = ("eval_set", "eval_item", "uid")


def read_overlaps(place: str, checkpoint: Path) -> dict[str, set[str]]:
    """Evaluation set → the keys of its items that match a pair; where the checkpoint has a ledger, a pair it saw.

    `place` is an overlaps table of a build: Parquet or csv, or a folder of Parquet. Raises InputError.
    """
    path = Path(place)
    try:
        table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"--overlaps {place}: cannot be read: {' '.join(str(error).split())[:160]}") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(f"--overlaps {place}: has no column {missing[0]}; it is to be a build's overlaps table")
    rows = table.select(COLUMNS).to_pylist()
    if (checkpoint / "ledger.json").is_file():
        from pipeline.train.ledger import seen

        trained = seen(checkpoint, {row["uid"] for row in rows})
        rows = [row for row in rows if row["uid"] in trained]
    found: dict[str, set[str]] = {str(row["eval_set"]): set() for row in table.select(["eval_set"]).to_pylist()}
    for row in rows:
        found[str(row["eval_set"])].add(_key(str(row["eval_item"])))
    return found


def _key(item: str) -> str:
    """The sample's key in "test/0.tar/s0000012.webp"."""
    return item.rpartition("/")[2].partition(".")[0]


def overlap(task: str, keys: Sequence[str], right: NDArray[np.bool_], overlapping: set[str], tests: int) -> list[Row]:
    """Rows of top-1 on all, clean and overlapping images [n], and of their difference.

    Overlap has the 99.5% Clopper–Pearson interval. The p-value is one-tailed (greater), with the accuracy on Clean as
    the null hypothesis, and is multiplied by `tests` (Bonferroni), the number of datasets asked.
    """
    mine = np.array([key.rpartition("/")[2] in overlapping for key in keys])
    n, among, clean = len(right), int(mine.sum()), int((~mine).sum())
    everywhere = float(right.mean())
    rows = [
        Row(task, "overlap_all", "top1", everywhere, n, *clopper_pearson(int(right.sum()), n, LEVEL), LEVEL),
        Row(task, "overlap", "share", among / n, n),
    ]
    if clean:
        hit = int(right[~mine].sum())
        rows.append(Row(task, "overlap_clean", "top1", hit / clean, clean, *clopper_pearson(hit, clean, LEVEL), LEVEL))
        rows.append(Row(task, "overlap_gain", "top1", everywhere - hit / clean, n, note="All less Clean"))
    if among:
        hit = int(right[mine].sum())
        rows.append(Row(task, "overlap_only", "top1", hit / among, among, *clopper_pearson(hit, among, LEVEL), LEVEL))
    if among and clean:
        chance = binomial_tail(int(right[mine].sum()), among, float(right[~mine].mean()))
        rows.append(
            Row(task, "overlap", "p_value", min(1.0, chance * tests), among, note=f"Bonferroni over {tests} datasets")
        )
    return rows
