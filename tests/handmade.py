"""Finished ROOTs made by hand, a row at a time, for what reads a ROOT: real images, records and tables, no Ray."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dedupe.stage import run_dedupe
from pipeline.download.pool import PoolWriter
from pipeline.select.stage import run_select
from pipeline.shard.stage import run_shard
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, Store
from pipeline.tables import publish
from pipeline.units import Output, StageFolder, count, measure
from schemas.recipe import Recipe, fingerprint
from schemas.records import Batch, InputFile, RunRecord, UnitRange, UnitRecord, now
from schemas.tables import CONSENT, OUTCOMES, PAIRS, REJECTS
from tests.pool_fixture import picture

RECIPE = Recipe.model_validate({"shard": {"number_sample_per_shard": 16}, "dedupe": {"levels": {"bytes": True}}})
FETCHED = datetime(2026, 1, 1, tzinfo=UTC)
UNIT_ROWS = 20

Edit = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def uid_of(url: str, text: str) -> str:
    return hashlib.sha256(f"{url}\x1f{text}".encode()).hexdigest()[:32]


class HandmadeRoot:
    """Of every ten rows, by their number: 3 has no text, 5 repeats 4, 7 times out, 8 is refused by robots.txt, 9 shares
    6's URL under another text, and the rest are ok."""

    def __init__(self, store: Store, recipe: Recipe | None = None) -> None:
        self.store = store
        self.recipe = recipe or RECIPE
        before: dict[str, str] = {}
        for stage in ("ingest", "download", "dedupe", "select", "shard"):
            before[stage] = fingerprint(self.recipe, stage, dict(before))
        self.folders = {stage: StageFolder(store, stage, name) for stage, name in before.items()}
        self._batches: list[str] = []

    def batch(self, rows: int, kept: bool = False) -> str:
        """Ingest and download one more batch; `kept` adds the column src_licence."""
        name = f"{len(self._batches) + 1:04d}"
        run = f"20260101T00000{len(self._batches)}-{name}"
        units = []
        for first in range(0, rows, UNIT_ROWS):
            unit = f"{name}-{len(units):07d}"
            numbers = range(first, min(rows, first + UNIT_ROWS))
            self.add_unit(unit, numbers, run, kept)
            units.append(UnitRange(unit=unit, first="0" * 32, last="f" * 32, rows=len(numbers)))
        file = InputFile(source=f"/lists/{name}.csv", format="csv", bytes=1, etag="0", sha256="0" * 64, rows=rows)
        batch = Batch(batch=name, created_at=now(), run=run, files=[file], rows=rows, settings={}, units=units)
        self.store.create(f"batches/{name}.json", batch.to_bytes())
        self.record_run(run)
        self._batches.append(name)
        return name

    def record_run(self, run: str) -> None:
        """Say that a run with this recipe has used these folders."""
        record = RunRecord(
            run=run, started_at=now(), command=["build"], who="tester", host="here", versions={},
            recipe=self.recipe.model_dump(mode="json"),
            stages={stage: folder.fingerprint for stage, folder in self.folders.items()},
        )  # fmt: skip
        self.store.create(f"runs/{run}.json", record.to_bytes())
        self.store.replace("run.json", record.to_bytes())

    def add_unit(self, unit: str, numbers: range, run: str = "run", kept: bool = False) -> None:
        """Ingest and download one unit of the batch that its name says."""
        self._unit(unit, [self._pair(unit.partition("-")[0], number, kept) for number in numbers], run)

    def finish(self) -> int | None:
        """Complete the stages, write the dataset and publish the tables; returns the tables' version."""
        self.complete("ingest", "download")
        stop = StopFlag(self.store.uri, "run")
        for stage, run in (("dedupe", run_dedupe), ("select", run_select), ("shard", run_shard)):
            run(self.store, self.recipe, self.folders, self.folders[stage], "run", stop, lambda result: None)
            self.complete(stage)
        return publish(self.store, self.folders)

    def complete(self, *stages: str) -> None:
        for stage in stages:
            folder = self.folders[stage]
            folder.complete(folder.records(), list(self._batches), None)

    def _pair(self, batch: str, number: int, kept: bool) -> dict[str, Any]:
        kind = number % 10
        twin = number - 1 if kind == 5 else number
        image = number - 3 if kind == 9 else twin
        url = f"http://host{image % 7}.test/{batch}/{image}.jpg"
        text = "" if kind == 3 else f"picture {twin} of {batch}: 猫 ‘é’"
        return {
            "kind": kind, "number": number, "uid": uid_of(url, text), "url": url, "fetch_url": url, "text": text,
            "caption": text, "source": f"/lists/{batch}.csv", "source_row": number, "batch": batch,
            "text_repaired": False, "n_chars": len(text), "n_words": len(text.split()),
            **({"src_licence": f"cc{number}"} if kept else {}),
        }  # fmt: skip

    def _unit(self, unit: str, rows: list[dict[str, Any]], run: str) -> None:
        pairs = [row for row in rows if row["kind"] not in (3, 5)]
        rejects = [
            {**row, "status": "rejected", "reason": "missing_text" if row["kind"] == 3 else "duplicate",
             "uid": None if row["kind"] == 3 else row["uid"], "dup_of": row["uid"] if row["kind"] == 5 else None}
            for row in rows if row["kind"] in (3, 5)
        ]  # fmt: skip
        statuses = ["ok"] * len(pairs) + ["rejected"] * len(rejects)
        reasons = [None] * len(pairs) + [row["reason"] for row in rejects]
        self._commit("ingest", unit, run, {"pairs": (PAIRS, pairs), "rejects": (REJECTS, rejects)}, statuses, reasons)
        scratch = self.store.scratch()
        pool = PoolWriter(scratch / "pool.tar")
        outcomes = self._outcomes(unit, pairs, pool)
        pool.close()
        consent = [
            {"uid": row["uid"], "signal": "robots", "value": "disallow", "source": "http://x.test/robots.txt",
             "verdict": "deny", "rule_version": "1", "observed_at": FETCHED}
            for row in outcomes if row["reason"] == "robots"
        ]  # fmt: skip
        tables = {"outcomes": (OUTCOMES, outcomes), "consent": (CONSENT, consent)}
        extra = [Output("pool", pool.path, pool.members)] if pool.members else []
        statuses, reasons = [row["status"] for row in outcomes], [row["reason"] for row in outcomes]
        self._commit("download", unit, run, tables, statuses, reasons, extra)

    def _outcomes(self, unit: str, pairs: list[dict[str, Any]], pool: PoolWriter) -> list[dict[str, Any]]:
        members: dict[str, dict[str, Any]] = {}
        outcomes = []
        for pair in pairs:
            row = {**pair, "unit": unit, "generation": 0, "status": "ok", "reason": None, "attempts": 1}
            if pair["kind"] == 7:
                row |= {"status": "failed", "reason": "timeout", "detail": "10 s"}
            elif pair["kind"] == 8:
                row |= {"status": "refused", "reason": "robots", "consent_ok": False}
            else:
                if pair["url"] not in members:
                    data = picture(pair["number"])
                    offset, size, digest = pool.add(f"{pair['uid']}.jpg", data)
                    members[pair["url"]] = {
                        "pool_file": f"{self.folders['download'].base}/pool/{unit}.0.1.tar", "pool_offset": offset,
                        "pool_size": size, "pool_sha256": digest, "sha256": digest, "bytes": size, "format": "jpeg",
                        "width": 16, "height": 16, "original_width": 16, "original_height": 16, "http_status": 200,
                        "fetched_at": FETCHED, "fetch_ms": 5,
                    }  # fmt: skip
                row |= members[pair["url"]]
            outcomes.append(row)
        return outcomes

    def _commit(
        self, stage: str, unit: str, run: str, tables: dict[str, tuple[pa.Schema, list[dict[str, Any]]]],
        statuses: list[str], reasons: list[str | None], extra: list[Output] | None = None,
    ) -> None:  # fmt: skip
        scratch = self.store.scratch()
        outputs = list(extra or [])
        for name, (schema, rows) in tables.items():
            has_kept = name in ("pairs", "outcomes") and any("src_licence" in row for row in rows)
            schema = schema.append(pa.field("src_licence", pa.string())) if has_kept else schema
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), scratch / f"{name}.parquet", compression="zstd")
            outputs.append(Output(name, scratch / f"{name}.parquet", len(rows)))
        folder = self.folders[stage]
        attempt = folder.begin(unit, 0, run, alone=False)
        folder.commit(attempt, outputs, count(statuses, reasons), len(statuses), "handmade")


class Vandal:
    """Breaks a local ROOT in one place, keeping the sums around it right, so that one check alone can notice."""

    def __init__(self, root: Path, recipe: Recipe | None = None) -> None:
        self.root = root
        self.made = HandmadeRoot(LocalStore(root), recipe)

    def record(self, stage: str, unit: str) -> UnitRecord:
        return self.made.folders[stage].records()[unit]

    def path(self, stage: str, unit: str, table: str) -> Path:
        entry = next(entry for entry in self.record(stage, unit).files if entry.table == table)
        return self.root / self.made.folders[stage].base / entry.path

    def rewrite_record(self, stage: str, unit: str, change: Callable[[dict[str, Any]], None]) -> None:
        record = self.record(stage, unit)
        path = self.root / self.made.folders[stage].base / "units" / f"{unit}.{record.generation}.json"
        told = json.loads(path.read_text())
        change(told)
        path.write_text(json.dumps(told))

    def tell_again(self, stage: str, unit: str, table: str, rows: int | None = None) -> None:
        """Record a changed file's new size and sha256."""
        size, digest = measure(self.path(stage, unit, table))

        def change(told: dict[str, Any]) -> None:
            entry = next(entry for entry in told["files"] if entry["table"] == table)
            entry.update(bytes=size, sha256=digest, **({} if rows is None else {"rows": rows}))

        self.rewrite_record(stage, unit, change)

    def rows(self, stage: str, unit: str, table: str, edit: Edit) -> None:
        """Edit a unit's table; its record tells the new file's sum, but the old counts."""
        path = self.path(stage, unit, table)
        before = pq.read_table(path)
        after = edit(before.to_pylist())
        pq.write_table(pa.Table.from_pylist(after, schema=before.schema), path)
        self.tell_again(stage, unit, table, len(after))

    def bytes(self, path: Path, edit: Callable[[bytearray], None]) -> None:
        data = bytearray(path.read_bytes())
        edit(data)
        path.write_bytes(data)
