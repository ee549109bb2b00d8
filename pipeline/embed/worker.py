"""One encoder in one process: a unit's due rows in, a table of embeddings out."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.attempt import attempt_unit
from pipeline.embed.beside import BESIDE, read_scored, scored
from pipeline.embed.forward import Beside, Encoder, Forward
from pipeline.embed.rows import DueRows, ok_uids
from pipeline.embed.token_process import Tokenizer, TokenPool
from pipeline.embed.vectors import Floats, embeddings, without_vectors
from pipeline.faults import fault_point
from pipeline.fence import Fence
from pipeline.root import ABOUT
from pipeline.rounds import open_table, table_path
from pipeline.runner import Result, Unit
from pipeline.storage import open_store
from pipeline.units import MAX_LONE_DEATHS, Attempt, Output, StageFolder, count
from schemas import recipe
from schemas.records import Counts, UnitRecord
from schemas.tables import EMBEDDINGS

DECODERS_A_TOKENIZER = 8
"""A caption is tokenised in about a tenth of the time its image is decoded in."""


class EmbedWorker:
    """Loads the encoder once; `run` may be called from two threads, so that one unit is written while another is
    encoded. Close it.

    Memory: the towers; the ring (forward.Forward); for each unit under way its vectors, thrice (10,000 rows of 768:
    184 MB), and in a generation above 0 its earlier table. A decode process: two tasks of 32 images, one image decoded.
    """

    def __init__(
        self, root: str, folders: Mapping[str, tuple[str, str]], own: str, settings: recipe.Embed,
        encoder: recipe.Encoder, load: Callable[[str], Encoder], tokenizer: Callable[[], Tokenizer], run: str,
        device: str = "cpu", decoders: int = 1, beside: Callable[[str], Mapping[str, Beside]] = lambda device: {},
    ) -> None:  # fmt: skip
        """`folders`: key → (stage, fingerprint) of the stages before; `own`: this encoder's fingerprint.

        `load` gives the encoder on a device; `tokenizer`, called in a process of its own, what tokenises for it;
        `beside` the models that score the same images, by the digest of each.
        """
        self._store = open_store(root)
        self._folders = {key: StageFolder(self._store, *folder) for key, folder in folders.items()}
        self._folder = StageFolder(self._store, "embed", own, Fence(self._store))
        self._name, self._run = encoder.name, run
        tokens = TokenPool(tokenizer, -(-decoders // DECODERS_A_TOKENIZER))  # it starts while the towers load
        self._encoder = load(device)
        scaled = settings.decode == "scaled"
        self._beside = dict(beside(device))
        self.forward = Forward(
            self._store.uri, self._encoder, device, settings.batch_size, scaled, decoders, tokens, self._beside
        )
        self._due, self._due_lock = DueRows(self._folders, settings.eligible), Lock()
        about = {
            **encoder.model_dump(), "arch": self._encoder.arch, "weights_sha256": self._encoder.weights_sha256,
            "dim": self._encoder.dim, "decode": settings.decode,
        }  # fmt: skip
        self._store.create(f"{self._folder.base}/{ABOUT}", json.dumps(about, indent=1).encode() + b"\n")

    def close(self) -> None:
        self.forward.close()

    def run(self, unit: Unit, alone: bool) -> Result:
        """Embed and commit one unit; `deferred` where an earlier attempt died and this is not a lone pass.

        After MAX_LONE_DEATHS the rows not embedded yet end as failed, internal.
        """
        new: list[Counts] = []

        def make(attempt: Attempt) -> UnitRecord:
            with self._folder.working(attempt) as scratch:
                record, made = self._make(attempt, unit, scratch)
            new.append(made)
            return record

        result = attempt_unit(self._folder, unit, self._run, alone, make)
        if result["state"] == "done":
            result["rows"] = unit["rows"]
            result["counts"] = new[0] if new else result["counts"]
        return result

    def _make(self, attempt: Attempt, unit: Unit, scratch: Path) -> tuple[UnitRecord, Any]:
        order = ok_uids(self._folders["download"], unit["unit"], unit["download"])
        earlier = self._earlier(attempt)
        with self._due_lock:
            rows = self._due.read(unit["reads"])
        rows = rows.filter(pc.invert(pc.is_in(rows["uid"], earlier["uid"].combine_chunks())))
        beside: dict[str, Floats] = {}
        if attempt.lone_deaths < MAX_LONE_DEATHS:
            made, beside = self._embed(rows, attempt)
        else:
            detail = f"{attempt.lone_deaths} workers died at this unit"
            made = without_vectors(rows["uid"], self._name, "internal", detail)
        start = time.perf_counter()
        new = count(made["status"].to_pylist(), made["reason"].to_pylist())
        table = pa.concat_tables([earlier, made])
        # In the order of the outcomes; rows that are no longer ok (a retraction) are left behind.
        table = table.take(pc.drop_null(pc.index_in(order, table["uid"].combine_chunks())))
        local = scratch / "embeddings.parquet"
        write(table, local)
        counts = count(table["status"].to_pylist(), table["reason"].to_pylist())
        outputs = [Output("embeddings", local, table.num_rows)]
        for name, scores in beside.items():
            scores_table = self._with_earlier(attempt, name, scored(rows["uid"], scores))
            scores_table = scores_table.filter(pc.is_in(scores_table["uid"], table["uid"].combine_chunks()))
            pq.write_table(scores_table, scratch / f"{name}.parquet", compression="zstd")
            outputs.append(Output(f"{BESIDE}{name}", scratch / f"{name}.parquet", scores_table.num_rows))
        record = self._folder.commit(attempt, outputs, counts, table.num_rows, unit["input"])
        self.forward.spent["write"] += time.perf_counter() - start
        return record, new

    def _embed(self, rows: pa.Table, attempt: Attempt) -> tuple[pa.Table, dict[str, Floats]]:
        made = self.forward.run(rows, lambda: fault_point("mid-embed", attempt.unit))
        return embeddings(rows["uid"], self._name, made.image, made.text, made.failed), made.beside

    def _with_earlier(self, attempt: Attempt, name: str, made: pa.Table) -> pa.Table:
        """Scores of a head over pixels after those of the unit's latest generation, where that has them."""
        for generation in range(attempt.generation - 1, -1, -1):
            if (record := self._folder.committed(attempt.unit, generation)) is not None:
                earlier = read_scored(self._folder, record, name)
                return made if earlier is None else pa.concat_tables([earlier, made])
        return made

    def _earlier(self, attempt: Attempt) -> pa.Table:
        """The rows of the unit's latest generation."""
        for generation in range(attempt.generation - 1, -1, -1):
            if (record := self._folder.committed(attempt.unit, generation)) is not None:
                return open_table(self._folder, table_path(self._folder, record, "embeddings")).read()
        return EMBEDDINGS.empty_table()


def write(table: pa.Table, path: Path) -> None:
    """With the bytes of like rank of a vector side by side, zstd takes 16% off (else 8%)."""
    vectors = [f"{name}.list.element" for name in ("image_embedding", "text_embedding")]
    pq.write_table(
        table, path, compression="zstd", use_byte_stream_split=vectors,
        use_dictionary=["encoder", "status", "reason", "detail"], write_statistics=["uid", "clip_score"],
    )  # fmt: skip
