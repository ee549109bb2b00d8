"""The embed stage of one encoder: rows that dedupe kept in, their vectors out, a download unit a call.

units 0001-0000000 … of the table `embeddings`, named as those of `download`. Rows are embedded once: where dedupe keeps
more of a unit than before, the unit's next generation has the earlier rows as they were and the new ones.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import pyarrow.compute as pc

from pipeline.cluster import connect
from pipeline.embed.decode_pool import TASK_ROWS
from pipeline.embed.rows import DueRows, decided_units
from pipeline.encoders.identity import identify
from pipeline.errors import InputError
from pipeline.rounds import open_table, table_path
from pipeline.runner import Pass, Result, Unit, UnitWorker, failures_last, run_here, run_units
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Encoder, Recipe, digest
from schemas.records import UnitRecord

FEW = 200
"""Rows that are embedded in this process, where there is no cluster: sooner than an actor starts."""
CPUS_AN_ACTOR = 4
"""Cores of an actor without a GPU: torch uses them together, and the weights are in memory once."""
UNITS_AT_A_TIME = 2
"""In an actor: one is read and written while the other is in the towers."""


def embed_due(store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], encoder: Encoder) -> list[Unit]:
    """Descriptors of the units with rows that are due and have no vectors yet; `rows`: those, or at most so many.

    From records alone where nothing changed since a unit was embedded; `embed.eligible` has its rows judged again.
    """
    download, dedupe, folder = folders["download"], folders["dedupe"], folders[f"embed/{encoder.name}"]
    embedded, decided = folder.records(), dedupe.records()
    eligible = recipe.embed.eligible
    due: DueRows | None = None
    found: list[Unit] = []
    reads = decided_units(dedupe)
    for outcomes in download.iter_records():
        units = [unit for unit in reads.get(outcomes.unit, []) if unit["unit"] in decided]
        if not units:
            continue
        record = embedded.get(outcomes.unit)
        kept = (_tables(decided[unit["unit"]], "duplicates") for unit in units)
        seen = digest([dict(eligible), _tables(outcomes, "outcomes"), *kept])
        rows = sum(decided[unit["unit"]].counts.get("ok", {}).get("", 0) for unit in units)
        if record is None:
            if not rows:
                continue
        elif record.input_digest == seen and not eligible:
            continue
        if record is not None or eligible:
            due = due or DueRows(folders, eligible)
            rows = _new_rows(due, folder, record, units)
            if not rows:
                continue
        found.append({
            "unit": outcomes.unit, "generation": record.generation + 1 if record else 0, "rows": rows,
            "download": outcomes.generation, "reads": units, "input": seen,
        })  # fmt: skip
    return found


def _new_rows(due: DueRows, folder: StageFolder, record: UnitRecord | None, units: list[Unit]) -> int:
    uids = due.read(units)["uid"]
    if record is None:
        return len(uids)
    known = open_table(folder, table_path(folder, record, "embeddings")).read(columns=["uid"])["uid"]
    return len(uids) - int(pc.sum(pc.is_in(uids, known.combine_chunks())).as_py() or 0)


def _tables(record: UnitRecord, table: str) -> list[str]:
    return [record.unit, *(entry.sha256 for entry in record.files if entry.table == table)]


def run_embed(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], encoder: Encoder, folder: StageFolder, run: str,
    stop: StopFlag, report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Embed what is due. Raises StoreError where the pool does not hold what was recorded, once all else is done."""
    due = embed_due(store, recipe, folders, encoder)
    if not due:
        return
    with failures_last("embed", report) as heard:
        upstream = {key: (one.stage, one.fingerprint) for key, one in folders.items() if not key.startswith("embed/")}
        weights = identify(encoder).weights_sha256
        make = partial(make_worker, store.uri, upstream, folder.fingerprint, recipe, encoder, run, weights)
        address = recipe.ray.address or os.environ.get("RAY_ADDRESS") or "local"
        rows, cores = sum(unit["rows"] for unit in due), os.cpu_count() or 1
        if address == "local" and rows < FEW:
            with closing(make(recipe.embed.num_gpus > 0, cores, min(cores, -(-rows // TASK_ROWS)))) as worker:
                run_here(lambda: worker, due, stop, heard, workers=1)
        else:
            run_units(recipe, plan_of(recipe, "embed", make, UNITS_AT_A_TIME), [[unit] for unit in due], stop, heard)


def make_worker(
    root: str, upstream: Mapping[str, tuple[str, str]], own: str, recipe: Recipe, encoder: Encoder, run: str,
    weights: str, gpu: bool, threads: int, decoders: int,
) -> Any:  # fmt: skip
    """The worker of an actor, or of this process. `weights`: the sha256 that the driver found."""
    # Only a worker needs torch.
    import torch

    from pipeline.embed.worker import EmbedWorker
    from pipeline.encoders.load import tokenizer_of

    torch.set_num_threads(threads)
    device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    return EmbedWorker(
        root, upstream, own, recipe.embed, encoder, partial(_load, encoder, weights),
        partial(tokenizer_of, encoder), run, device, recipe.embed.decoders or decoders,
        partial(pixel_models, recipe, encoder),
    )  # fmt: skip


def _load(encoder: Encoder, weights: str, device: str) -> Any:
    """The encoder, with the weights that the folder is named after. Raises InputError for others."""
    from pipeline.encoders.load import load

    loaded = load(encoder, device)
    if loaded.weights_sha256 != weights:
        raise InputError(
            f"recipe embed.encoders: {encoder.weights} holds {loaded.weights_sha256[:16]}… where a worker reads it, but"
            f" {weights[:16]}… when the run began; put the same file there on every node"
        )
    return loaded


def pixel_models(recipe: Recipe, encoder: Encoder, device: str) -> dict[str, Any]:
    """The recipe's heads over pixels, which see an image while this encoder does: digest → model."""
    if not recipe.embed.heads:
        return {}
    from pipeline.heads.pixels import PixelModel
    from pipeline.heads.recipe import named_heads, read_head

    named = [head for head in named_heads(recipe, encoder) if head.over_pixels]
    return {head.digest: PixelModel(read_head(head), head.path, device) for head in named}


def plan_of(recipe: Recipe, stage: str, make: Callable[[bool, int, int], UnitWorker], concurrent: int) -> Pass:
    """Actors for GPUs where the cluster has any, or will (`ray.gpus`), and the recipe wants them, else for its cores.

    `ray.pools.<stage>` is the most there may be; those for which there is no room yet join when there is.
    """
    import ray

    connect(recipe)
    have = ray.cluster_resources()
    cores, gpus, each = max(1, int(have.get("CPU", 1))), have.get("GPU", 0.0), recipe.embed.num_gpus
    most = recipe.ray.pools.get(stage)
    if each > 0 and (gpus > 0 if recipe.ray.gpus is None else recipe.ray.gpus):
        fit = int(gpus / each) if each <= 1 else int(gpus // each)
        actors = most or max(1, fit)
        share = max(1, cores // max(1, min(actors, fit)))
        # No CPUs: an actor with a GPU must not wait for a core that some other task has.
        return Pass(stage, partial(make, True, share, share), concurrent, actors, cpus=0, gpus=each)
    actors = most or max(1, cores // CPUS_AN_ACTOR)
    largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    share = max(1, min(cores // actors, largest))
    return Pass(stage, partial(make, False, share, share), concurrent, actors, cpus=share)
