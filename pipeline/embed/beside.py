"""Scores that models beside an encoder gave the images it embedded: a table of the embed unit for each, by its digest.

A head over pixels (LAION's watermark detector) needs the image itself. While the encoder embeds it, it is at hand; rows
embedded before the recipe named the head are looked at by the scores stage.
"""

import pyarrow as pa

from pipeline.embed.vectors import Floats
from pipeline.rounds import open_table, table_path
from pipeline.units import StageFolder
from schemas.records import UnitRecord

BESIDE = "beside_"
"""And the digest of the head: the name of its table."""


def scored(uids: pa.ChunkedArray, scores: Floats) -> pa.Table:
    """uid and output_0, output_1, …: scores [rows, outputs], NaN as null."""
    columns = {f"output_{number}": pa.array(values, from_pandas=True) for number, values in enumerate(scores.T)}
    return pa.table({"uid": uids, **columns})


def read_scored(folder: StageFolder, record: UnitRecord, digest: str) -> pa.Table | None:
    """The table of one head; None where the unit has none."""
    if not any(entry.table == f"{BESIDE}{digest}" for entry in record.files):
        return None
    return open_table(folder, table_path(folder, record, f"{BESIDE}{digest}")).read()
