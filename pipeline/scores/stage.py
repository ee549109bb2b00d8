"""The scores of an encoder's pairs: its cosines and what heads make of its image vectors, as columns.

embed/<fp>/ (a unit and generation at a time)  →  table `scores` of scores/<fp>/, in the unit of the same name

The folder is one of an encoder and its heads: `encoder.json` and `heads.json` say which, and `heads/` has the heads
themselves, so that scores can be made again from what lies beside them. A changed head gives a new folder and embeds
nothing again.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from pipeline.embed.beside import BESIDE
from pipeline.errors import InputError
from pipeline.faults import fault_point
from pipeline.heads.head import Head, written
from pipeline.heads.labels import Labels, zero_shot
from pipeline.heads.recipe import Named, heads_of, named_heads, read_head
from pipeline.root import ABOUT
from pipeline.runner import Pass, Result, Unit, failures_last, run_here, run_units
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Encoder, Recipe

__all__ = ["heads_of", "run_scores", "scores_due"]

LISTED = "heads.json"
"""In the scores folder: its heads, key → digest; the encoder's weights_sha256, and how it had images decoded."""
FEW = 2_000_000
"""Rows whose cosines alone are copied in this process: sooner than workers start."""
FEW_HEADED = 200_000
"""The same where heads read the vectors."""
FEW_IMAGES = 200
"""The same where heads read images."""


def scores_due(folders: Mapping[str, StageFolder], name: str) -> list[Unit]:
    """Descriptors of an encoder's embed units whose current generation has no scores yet."""
    embed, done = folders[f"embed/{name}"], folders[f"scores/{name}"].generations()
    return [
        {"unit": unit, "generation": generation, "rows": embed.record(unit, generation).rows}
        for unit, generation in sorted(embed.generations().items())
        if done.get(unit, -1) < generation
    ]


def run_scores(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], encoder: Encoder, folder: StageFolder, run: str,
    stop: StopFlag, report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Score every unit of `embed/<encoder>` that has a newer generation than its scores."""
    embed = folders[f"embed/{encoder.name}"]
    about = {"name": encoder.name, "embed": embed.fingerprint}
    store.create(f"{folder.base}/{ABOUT}", json.dumps(about, indent=1).encode() + b"\n")
    due = scores_due(folders, encoder.name)
    if not due:
        return
    heads = named_heads(recipe, encoder)
    _put_heads(embed, folder, encoder, heads)
    pixels = [f"{BESIDE}{head.digest}" for head in heads if head.over_pixels]
    machine = (folders["download"].fingerprint, recipe.embed.decoders) if pixels else None
    make = partial(make_worker, store.uri, embed.fingerprint, folder.fingerprint, run, machine)
    rows = sum(unit["rows"] for unit in due)
    unseen = sum(unit["rows"] for unit in due if set(pixels) - _tables(embed, unit)) if pixels else 0
    address = recipe.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    with failures_last("scores", report) as heard:
        if unseen and (unseen >= FEW_IMAGES or address != "local"):
            from pipeline.embed.stage import plan_of

            run_units(recipe, plan_of(recipe, "scores", make, 1), [[unit] for unit in due], stop, heard)
        elif unseen:
            cores = os.cpu_count() or 1
            with closing(make(recipe.embed.num_gpus > 0, cores, cores)) as worker:
                run_here(lambda: worker, due, stop, heard, workers=1)
        elif rows >= (FEW_HEADED if heads else FEW):
            run_units(recipe, Pass("scores", partial(make, False, 1, 1)), [[unit] for unit in due], stop, heard)
        else:
            run_here(partial(make, False, 1, 1), due, stop, heard)


def _tables(folder: StageFolder, unit: Unit) -> set[str]:
    return {entry.table for entry in folder.record(unit["unit"], unit["generation"]).files}


def make_worker(
    root: str, embed: str, own: str, run: str, machine: tuple[str, int | None] | None, gpu: bool, threads: int,
    decoders: int,
) -> Any:  # fmt: skip
    """The worker of an actor, or of this process. `machine`: what a head over pixels needs, else None."""
    from pipeline.scores.worker import Machine, ScoreWorker

    if machine is None:
        return ScoreWorker(root, embed, own, run)
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    return ScoreWorker(root, embed, own, run, Machine(machine[0], device, machine[1] or decoders))


def _put_heads(embed: StageFolder, folder: StageFolder, encoder: Encoder, heads: list[Named]) -> None:
    """Put the heads beside what they will score, and then say that they are all there. Raises InputError."""
    store = folder.store
    if store.size(f"{folder.base}/{LISTED}") is not None:
        return
    about = json.loads(store.read(f"{embed.base}/{ABOUT}"))
    for named in heads:
        head = _head(named, encoder)
        if head.spec.backbone is None and head.spec.layers[0] != about["dim"]:
            told = f"reads {head.spec.layers[0]} numbers, {encoder.name} gives {about['dim']}"
            raise InputError(f"recipe embed.heads.{named.key}: {named.path} {told}")
        spec, tensors = written(head)
        store.replace(f"{folder.base}/heads/{named.key}.safetensors", tensors)
        store.replace(f"{folder.base}/heads/{named.key}.json", spec)
        fault_point("mid-heads", named.key)
    listed = {
        "weights_sha256": about["weights_sha256"], "decode": about.get("decode"),
        "heads": {named.key: named.digest for named in heads},
    }  # fmt: skip
    store.create(f"{folder.base}/{LISTED}", json.dumps(listed, indent=1).encode() + b"\n")


def _head(named: Named, encoder: Encoder) -> Head:
    if not isinstance(named.what, Labels):
        return read_head(named)
    # Only labels need a tower, and with it torch.
    from pipeline.encoders.load import load

    return zero_shot(named.what, named.key, load(encoder))
