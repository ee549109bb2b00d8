"""A ROOT as readers see it: its batches, its runs, and the current folder of each stage."""

import json
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import InputError, StoreError
from pipeline.storage import LocalStore, Store, open_store
from pipeline.units import StageFolder, current_folder, fingerprints
from schemas.recipe import FORMAT_VERSION, ORDER, PER_ENCODER, digest
from schemas.records import Batch, RunRecord


def open_root(uri: str) -> Store:
    """The store of a ROOT that a build has begun. Raises InputError where there is none."""
    store = open_store(uri)
    try:
        begun = store.size("run.json") is not None or next(iter(store.files("batches")), None) is not None
    except NotADirectoryError:
        raise InputError(f"{uri}: is a file, no ROOT; give the --output of a build") from None
    except StoreError as error:
        raise InputError(f"{uri}: cannot be read: {error}") from None
    if begun:
        return store
    if isinstance(store, LocalStore) and not store.root.exists():
        raise InputError(f"{uri}: there is no such folder; give the --output of a build")
    raise InputError(f"{uri}: is no ROOT (it has neither run.json nor batches/); give the --output of a build")


def read_batches(store: Store) -> dict[str, Batch]:
    """Every batch, in the order they were made."""
    paths = sorted(path for path, _ in store.files("batches") if path.endswith(".json"))
    with ThreadPoolExecutor(8) as pool:
        found = [Batch.model_validate_json(data) for data in pool.map(store.read, paths)]
    return {batch.batch: batch for batch in sorted(found, key=lambda batch: int(batch.batch))}


def read_runs(store: Store) -> list[RunRecord]:
    """Every run's record, the oldest first."""
    paths = sorted(path for path, _ in store.files("runs") if path.endswith(".json"))
    with ThreadPoolExecutor(8) as pool:
        return [RunRecord.model_validate_json(data) for data in pool.map(store.read, paths)]


def adopted_scores(store: Store) -> StageFolder:
    """The folder, of stage `embed`, of the scores and vectors that came with adopted batches: no recipe made them."""
    return StageFolder(store, "embed", digest({"format": FORMAT_VERSION, "stage": "embed", "adopted": True}))


ABOUT = "encoder.json"
"""In a folder of `embed` or `scores`: the encoder it belongs to, by `name`."""


def encoder_folders(store: Store, stage: str = "embed") -> dict[str, StageFolder]:
    """encoder → its current folder of `embed` or `scores`: of several (other weights, other heads) the one completed
    last. Adopted scores are none of them."""
    found: dict[str, tuple[str, StageFolder]] = {}
    for fingerprint in fingerprints(store, stage):
        folder = StageFolder(store, stage, fingerprint)
        if (name := encoder_name(folder)) is None:
            continue
        done = folder.completed()
        finished = done.finished_at if done else ""
        if name not in found or found[name][0] <= finished:
            found[name] = (finished, folder)
    return {name: folder for name, (_, folder) in sorted(found.items())}


def encoder_name(folder: StageFolder) -> str | None:
    """The encoder whose folder of `embed` or `scores` this is; None for that of adopted scores."""
    tagged = folder.store.read_tagged(f"{folder.base}/{ABOUT}")
    return str(json.loads(tagged[0])["name"]) if tagged else None


def stage_of(key: str) -> str:
    """The stage of a key of `current_folders` or of a run's `stages`: embed of embed/b32."""
    return key.partition("/")[0]


def current_folders(store: Store) -> dict[str, StageFolder]:
    """stage → its current folder, in the order of the flow; embed/<encoder> and scores/<encoder> for those an encoder
    has, `embed` alone for the scores of adopted batches.

    A stage that was never completed is shown by the folder of the newest run that names one, so that a build can be
    watched while it runs. `semantic` is there where the newest run has it.
    """
    folders: dict[str, StageFolder] = {}
    runs: list[RunRecord] | None = None
    for stage in ORDER:
        if stage in PER_ENCODER:
            if stage == "embed" and (beside := adopted_scores(store)).generations():
                folders["embed"] = beside
            folders |= {f"{stage}/{name}": folder for name, folder in encoder_folders(store, stage).items()}
            continue
        if stage == "semantic" and "semantic" not in _newest_stages(store):
            continue
        known = fingerprints(store, stage)
        if not known:
            continue
        folder = current_folder(store, stage)
        if folder is None:
            runs = read_runs(store) if runs is None else runs
            named = [run.stages[stage] for run in runs if run.stages.get(stage) in known]
            folder = StageFolder(store, stage, named[-1] if named else known[-1])
        folders[stage] = folder
    return folders


def _newest_stages(store: Store) -> dict[str, str]:
    tagged = store.read_tagged("run.json")
    return RunRecord.model_validate_json(tagged[0]).stages if tagged else {}
