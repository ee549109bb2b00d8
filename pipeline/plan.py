"""--plan: what a run would do, without doing it."""

import os
from typing import TYPE_CHECKING

from pipeline.check import check_recipe
from pipeline.ingest.batch import check_limit
from pipeline.ingest.stage import count_new_rows
from pipeline.root import read_batches
from pipeline.rounds import pending_rows
from pipeline.shard.stage import expected
from pipeline.stages import encoder_of, has_stage, stage_folders
from pipeline.storage import open_store

if TYPE_CHECKING:
    from pipeline.build import Request

BYTES_PER_IMAGE = 138 * 1024
"""Mean body assumed before anything was fetched: the photos of tests/benchmarks/download.py."""
ROWS_PER_SECOND_PER_CPU = 200.0
"""Download rate assumed, from the same benchmark; a real web is slower by as much as its hosts are."""
ROWS_PER_UNIT = 10_000


def plan(request: "Request") -> str:
    """One line a stage: units, rows, requests, bytes, hours. Raises InputError as the run itself would."""
    check_recipe(request.recipe)
    store = open_store(request.root)
    folders = stage_folders(store, request.recipe)
    batches = list(read_batches(store).values())
    check_limit(store, request.limit, batches)
    new = count_new_rows(store, request.recipe, request.inputs, batches) if "ingest" in request.stages else 0
    if request.limit:
        new = min(new, request.limit)
    new_units = -(-new // min(ROWS_PER_UNIT, max(250, new // 64))) if new else 0
    cpus = request.recipe.ray.pools.get("download") or os.cpu_count() or 1
    lines = [f"{'stage':<10}{'units':>10}{'rows':>14}{'requests':>14}{'GB':>10}{'hours':>10}"]
    unfetched = 0
    keys = [
        key
        for stage in request.stages if has_stage(request.recipe, stage)
        for key in (folders if stage == "embed" else [stage]) if key.partition("/")[0] == stage
    ]  # fmt: skip
    for stage in keys:
        done = folders[stage].generations()
        left = [piece for batch in batches for piece in batch.units if piece.unit not in done]
        rows, units = sum(piece.rows for piece in left) + new, len(left) + new_units
        if stage == "download" and request.retry:
            records = list(folders[stage].iter_records())
            hits = [sum(counts.get(reason, 0) for counts in record.counts.values() for reason in request.retry)
                    for record in records]  # fmt: skip
            rows, units = sum(hits), sum(hit > 0 for hit in hits)
        requests = rows if stage == "download" else 0
        if stage == "download":
            unfetched = rows
        elif stage != "ingest":
            # At most: every row ahead becomes an image, and every image is kept.
            by_unit = folders[stage if stage in ("dedupe", "semantic") else "select"]
            rows = pending_rows(folders["download"], by_unit) + unfetched
            units = -(-rows // ROWS_PER_UNIT)
        if stage.startswith("embed/"):
            from pipeline.embed.stage import embed_due

            due = embed_due(store, request.recipe, folders, encoder_of(request.recipe, stage))
            rows = sum(unit["rows"] for unit in due)
            rows += pending_rows(folders["download"], folders["dedupe"]) + unfetched
            units = -(-rows // ROWS_PER_UNIT)
        if stage == "shard":
            rows += expected(request.recipe, folders, folders["shard"])["samples"]
            units = -(-rows // request.recipe.shard.number_sample_per_shard)
        hours = requests / (ROWS_PER_SECOND_PER_CPU * cpus) / 3600
        gigabytes = requests * BYTES_PER_IMAGE / 1e9
        lines.append(f"{stage:<10}{units:>10,}{rows:>14,}{requests:>14,}{gigabytes:>10,.1f}{hours:>10,.2f}")
    lines.append(
        f"(at most: every row a pair and an image; {BYTES_PER_IMAGE // 1024} KiB an image, "
        f"{ROWS_PER_SECOND_PER_CPU:,.0f} images/s a CPU on {cpus} CPUs)"
    )
    return "\n".join(lines)
