"""What a checkpoint saw: derivable from a few numbers, and provable against the data itself.

The ledger holds the data's fingerprint, seed, batch size and weights, and the step the checkpoint was taken after. The
order of training follows from these (pipeline.train.order); failed.jsonl names the samples that were drawn and could
not be decoded.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.train.index import SampleIndex
from pipeline.train.order import Order

LEDGER = "ledger.json"
FAILED = "failed.jsonl"


def ledger(index: SampleIndex, settings: dict[str, Any], step: int, uids: str) -> dict[str, Any]:
    """The content of ledger.json after `step` steps; `uids`: the file that lists the uids in the index's order."""
    return {
        "format": 1, "fingerprint": index.fingerprint, "sizes": index.sizes, "fingerprints": index.fingerprints,
        "datasets": index.datasets, "seed": settings["seed"], "batch_size": settings["batch_size"],
        "data_weights": settings["data_weights"], "step": step, "index": uids,
    }  # fmt: skip


def order_of(said: dict[str, Any]) -> Order:
    """The order of training that a ledger names."""
    return Order(said["sizes"], said["batch_size"], said["seed"], said["data_weights"])


def seen(checkpoint: Path, uids: Iterable[str]) -> dict[str, list[int]]:
    """uid → the steps (from 1, as in metrics.jsonl) that trained on it, in order; uids it never saw are left out.

    Raises InputError where the folder has no ledger, or the run's index is gone or is another's.
    """
    path = checkpoint / LEDGER
    if not path.is_file():
        raise InputError(f"{checkpoint}: has no {LEDGER}; give a checkpoint of jobs.train")
    said = json.loads(path.read_text())
    folder = (checkpoint / said["index"]).resolve()
    if not (folder / "files.json").is_file():
        raise InputError(f"{checkpoint}: {folder} is gone, which says what samples its ledger counts")
    index = SampleIndex(folder)
    if index.fingerprint != said["fingerprint"]:
        raise InputError(
            f"{checkpoint}: trained on {said['fingerprint'][:16]}, and {folder} is {index.fingerprint[:16]}"
        )
    order = order_of(said)
    failed = {(one["step"], one["uid"]) for one in _failed(checkpoint)}
    found: dict[str, list[int]] = {}
    for uid in uids:
        steps = {step + 1 for sample in index.samples_of(uid) for step in order.steps_seen(sample, said["step"])}
        if steps := {step for step in steps if (step, uid) not in failed}:
            found[uid] = sorted(steps)
    return found


def _failed(checkpoint: Path) -> list[dict[str, Any]]:
    path = checkpoint / FAILED
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def checkpoints_of(out: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(path for path in (out / "checkpoints").glob("*") if path.name.isdigit() and (path / LEDGER).is_file())
