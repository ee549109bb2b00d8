"""A ROOT at a glance: the funnel folded over batches, failed gates, and where the dataset is."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.dedupe.stage import SETS
from pipeline.export.rebuilt import Rebuilt, rebuilt
from pipeline.funnel import FunnelRow, funnel, sum_rows
from pipeline.gates import FailedGate, failed_gates
from pipeline.root import current_folders, read_batches, read_runs
from pipeline.storage import Store
from pipeline.tables import open_table, read_published
from pipeline.units import StageFolder
from schemas.recipe import Recipe


@dataclass(frozen=True)
class StageSummary:
    """`rows_in` is what the stage before left for it; `pending` of them have no outcome yet."""

    stage: str
    encoder: str
    """Of `embed`, which has a folder an encoder; else empty."""
    fingerprint: str
    finished_at: str | None
    rows_in: int
    rows_out: int
    pending: int
    rows: list[FunnelRow]
    """status, reason and rows, over all batches; ok first, then by rows."""

    @property
    def key(self) -> str:
        """embed/b32, or the stage's name."""
        return f"{self.stage}/{self.encoder}" if self.encoder else self.stage


@dataclass(frozen=True)
class Summary:
    root: str
    input_rows: int
    batches: list[dict[str, Any]]
    """`batch`, `rows` and `ok`: stage → rows."""
    stages: list[StageSummary]
    funnel: list[FunnelRow]
    failed_gates: list[FailedGate]
    """By the gates of the last run's recipe, accepted batches left out."""
    eval_sets: list[dict[str, Any]]
    """What the pool holds of the sets of dedupe.against, at least: see pipeline.dedupe.against.held."""
    rebuilt: Rebuilt | None
    """By the last run's download.verify_hash: what became of the rows of an index that was built again."""
    dataset: str | None
    mode: str | None
    """tars or index, where there is a dataset."""
    samples: int
    shards: int


def summarise(store: Store) -> Summary:
    """Read the records of a ROOT, finished or under way."""
    batches = read_batches(store)
    # Hashes and scores, those too that came along with adopted batches, are columns, no steps that rows pass.
    folders = {
        key: folder
        for key, folder in current_folders(store).items()
        if folder.stage not in ("hashes", "scores") and key != "embed"
    }
    runs = read_runs(store)
    rows = funnel(store, folders, list(batches.values()))
    input_rows = sum(batch.rows for batch in batches.values() if batch.readmits is None)
    stages: list[StageSummary] = []
    before = input_rows
    for key, folder in folders.items():
        stage, _, encoder = key.partition("/")
        if stage == "select":  # decides on every row of the pool, duplicates too
            before = sum_rows(rows, stage="download", status="ok")
        if stage in ("embed", "semantic"):
            before = sum_rows(rows, stage="dedupe", status="ok")
        done = folder.completed()
        judged = sum_rows(rows, stage=stage, encoder=encoder)
        out = sum_rows(rows, stage=stage, encoder=encoder, status="ok")
        # A retry may leave ok rows that no round has taken; until then they are pending.
        stages.append(
            StageSummary(
                stage, encoder, folder.fingerprint, done.finished_at if done else None, before, out,
                max(0, before - judged),
                _fold([row for row in rows if (row["stage"], row["encoder"]) == (stage, encoder)]),
            )
        )  # fmt: skip
        before = out
    accepted = {batch for run in runs for batch in run.accepts}
    shard = folders.get("shard")
    made = shard.records() if shard else {}
    return Summary(
        root=store.uri,
        input_rows=input_rows,
        batches=[
            {
                "batch": batch.batch,
                "rows": batch.rows,
                "ok": {key: sum_rows(rows, **_named(key), batch=batch.batch, status="ok") for key in folders},
            }
            for batch in batches.values()
        ],
        stages=stages,
        funnel=rows,
        failed_gates=failed_gates(_gates_of(runs[-1].recipe), rows, accepted) if runs else [],
        eval_sets=_eval_sets(store, folders.get("dedupe"), sum_rows(rows, stage="download", status="ok")),
        rebuilt=rebuilt(runs[-1].recipe, batches.values(), rows) if runs else None,
        dataset=f"{store.uri}/{shard.base}/dataset" if shard and made else None,
        mode=_mode(store, shard) if shard and made else None,
        samples=sum_rows(rows, stage="shard", status="ok"),
        shards=len(made),
    )


def _mode(store: Store, shard: StageFolder) -> str:
    tagged = store.read_tagged(f"{shard.base}/dataset/dataset.json")
    return str(json.loads(tagged[0]).get("mode", "tars")) if tagged else "tars"


def _eval_sets(store: Store, dedupe: StageFolder | None, pool_rows: int) -> list[dict[str, Any]]:
    tagged = store.read_tagged(f"{dedupe.base}/{SETS}") if dedupe else None
    published = read_published(store, "overlaps") if tagged else None
    if tagged is None or published is None:
        return []
    from pipeline.dedupe.against import held

    found = open_table(store, [file.path for file in published.files], "overlaps").to_table()
    names = [pa.repeat(pa.scalar(name), items) for name, items in json.loads(tagged[0]).items()]
    return held(found, pa.table({"eval_set": pa.chunked_array(names, pa.string())}), pool_rows)


def _gates_of(recorded: dict[str, Any]) -> Recipe:
    """The gates of a recorded recipe, and nothing else of it: an older version may have had other fields."""
    download = {"min_success": recorded.get("download", {}).get("min_success", 0.0)}
    return Recipe.model_validate({"gates": recorded.get("gates", {}), "download": download})


def _named(key: str) -> dict[str, str]:
    stage, _, encoder = key.partition("/")
    return {"stage": stage, "encoder": encoder}


def _fold(rows: list[FunnelRow]) -> list[FunnelRow]:
    total: Counter[tuple[str, str]] = Counter()
    for row in rows:
        total[row["status"], row["reason"]] += row["rows"]
    ordered = sorted(total.items(), key=lambda item: (item[0][0] != "ok", -item[1], item[0]))
    return [{"status": status, "reason": reason, "rows": count} for (status, reason), count in ordered]
