"""The dedupe stage: pool rows in, and for each that goes the row that stays; a round over the whole set at a time.

`hashes` (by Ray actors, a download unit a call)  →  rounds/0001.json  →  all rows compared in this process  →  units
0001-0000000 … of the tables `duplicates` and `overlaps`

Nothing of a round is written before all of it is decided, and the same rows give the same decision: a round that a kill
cut short is decided again, and only the units without a record are written. Memory: about 650 bytes a row of the pool.
"""

from collections.abc import Callable, Mapping

from pipeline.rounds import open_round, read_rounds, round_over_download, unfinished
from pipeline.runner import Pass, Result, Unit, UnitWorker, failures_last, run_here, run_units
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Dedupe, Recipe

FEW = 2_000
"""Images that are hashed in this process: sooner than workers start."""


SETS = "sets.json"
"""In the stage's folder: evaluation set → its items."""


def needs_hashes(settings: Dedupe) -> bool:
    """Whether perceptual hashes are compared at all."""
    return settings.levels.get("pdq", False) is not False or bool(settings.against)


def hashes_due(download: StageFolder, hashes: StageFolder) -> list[Unit]:
    """Descriptors of the download units whose current generation has no hashes yet."""
    done = hashes.generations()
    due: list[Unit] = []
    for unit, generation in sorted(download.generations().items()):
        if done.get(unit, -1) >= generation:
            continue
        rows = download.record(unit, generation).counts.get("ok", {}).get("", 0)
        if rows or unit in done:
            due.append({"unit": unit, "generation": generation, "rows": rows})
    return due


def run_hashes(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Hash the images of every download unit that has a newer generation than its hashes.

    Raises StoreError where the pool does not hold what was recorded, once all other units are hashed.
    """
    due = hashes_due(folders["download"], folder)
    download, dihedral = folders["download"].fingerprint, recipe.dedupe.dihedral

    def make() -> UnitWorker:
        # Only a worker needs what decoding imports.
        from pipeline.dedupe.worker import HashWorker

        return HashWorker(store.uri, download, folder.fingerprint, dihedral, run)

    with failures_last("hashes", report) as heard:
        if sum(unit["rows"] for unit in due) < FEW:
            run_here(make, due, stop, heard)
        else:
            run_units(recipe, Pass("hashes", make), [[unit] for unit in due], stop, heard)


def run_dedupe(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Finish the round a killed run left, open one for rows no round took. `folders` has those of every stage."""
    while not stop.is_set():
        rounds = read_rounds(folder)
        missing = unfinished(rounds, folder.generations())
        if missing:
            # Only here is needed what it imports.
            from pipeline.dedupe.decision import Decision

            Decision(store, recipe, folders, folder, rounds, str(missing[0]["unit"])).commit(run, stop, report)
        elif (opened := round_over_download(folders["download"], rounds, run)) is None:
            return
        else:
            open_round(folder, opened)
