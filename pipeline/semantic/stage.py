"""The semantic stage: rows that dedupe kept in, and for each near-duplicate in embedding space the row that stays.

rounds/0001.json  →  all vectors of the round compared in this process  →  centroids/0001.npy, then units 0001-0000000 …
of the tables `duplicates` and `overlaps`

Images are compared as `dedupe.scope` says: with `pair` only those of equal text, with `image` all. One scope serves
both stages: under `pair` dedupe keeps one image with its several texts, and a rule that then dropped all of them but
one, as SemDeDup's does, would undo just that. Who wants SemDeDup sets `dedupe.scope: image`.
Rows compete that dedupe kept, that pass `dedupe.eligible` and that have a vector; the others are left alone.

Nothing of a round is written before all of it is decided, and the same rows give the same decision.

Memory: 4 d bytes a row with a vector, of this round and of those that earlier ones kept (2 GB a million at 512
dimensions), and 400 bytes a row beside them. float16 would halve the former, but verifying a pair needs the float32.
Cost, from tests/benchmarks/semantic.py at 512 dimensions, CPU seconds: 9 for 100,000 rows, 53 for 400,000, growing as
n^1.3 (to n^1.5, which the pairs compared do). Recall at the defaults: of generated copies all pairs, of a continuum
without groups 96% of the pairs and 99.5% of the rows that brute force drops.
"""

from collections.abc import Callable, Mapping

from pipeline.errors import InputError
from pipeline.rounds import open_round, read_rounds, round_over_round, unfinished
from pipeline.runner import Result
from pipeline.semantic.vectors import vector_folder
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Recipe


def run_semantic(
    store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder, run: str, stop: StopFlag,
    report: Callable[[Result], None],
) -> None:  # fmt: skip
    """Finish the round a killed run left, open one for units of dedupe that no round took.

    Raises InputError where the encoder has embedded nothing, or an image of an evaluation set cannot be read.
    """
    encoder = recipe.semantic.encoder
    assert encoder is not None
    while not stop.is_set():
        rounds = read_rounds(folder)
        missing = unfinished(rounds, folder.generations())
        if missing:
            # Only here is needed what it imports.
            from pipeline.semantic.decision import Decision

            Decision(store, recipe, folders, folder, rounds, str(missing[0]["unit"])).commit(run, stop, report)
        elif (opened := round_over_round(folders["dedupe"], rounds, run)) is None:
            return
        elif not vector_folder(folders, encoder).generations():
            raise InputError(f"semantic.encoder: {encoder} has embedded nothing of {store.uri}; run jobs.embed first")
        else:
            open_round(folder, opened)
