"""ROOT/trained/: where models were trained on a ROOT's datasets; leads from a sample to the checkpoints that saw it."""

import hashlib
import json
import logging
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import InputError
from pipeline.storage import Store, open_store
from pipeline.train.ledger import checkpoints_of, seen

log = logging.getLogger(__name__)

FOLDER = "trained"


def register(root: str, out: Path, fingerprint: str) -> None:
    """Note in the ROOT that `out` trains on a dataset of it; a ROOT that we may not write to stays as it is."""
    name = hashlib.sha256(str(out).encode()).hexdigest()[:16]
    said = {"out": str(out), "fingerprint": fingerprint}
    try:
        open_store(root).replace(f"{FOLDER}/{name}.json", json.dumps(said).encode() + b"\n")
    except OSError as error:
        log.warning("train: %s/%s cannot be written (%s): its jobs.trace will not name this run", root, FOLDER, error)


def that_saw(store: Store, uids: Collection[str]) -> dict[str, dict[str, list[int]]]:
    """Checkpoint → uid → steps, of the checkpoints there are that saw one of the uids.

    A run whose folder cannot be read from here is named itself, with no uid: nothing is known of it.
    """
    found: dict[str, dict[str, list[int]]] = {}
    if not uids:
        return found
    for path in sorted(entry.path for entry in store.files(FOLDER) if entry.path.endswith(".json")):
        out = Path(json.loads(store.read(path))["out"])
        checkpoints = checkpoints_of(out)
        if not checkpoints and not (out / "run.json").is_file():
            found[str(out)] = {}
        for checkpoint in checkpoints:
            try:
                steps = seen(checkpoint, uids)
            except (InputError, OSError, ValueError):
                found[str(checkpoint)] = {}
                continue
            if steps:
                found[str(checkpoint)] = steps
    return found
