"""A worker that outlives its driver: `python -m tests.late_worker ROOT STAGE UNIT` does one unit of a handmade ROOT.

Where PAIRMILL_FAULT stops it, a test does what it likes before it goes on.
"""

import sys

from pipeline.dedupe.worker import HashWorker
from pipeline.fence import Fence
from pipeline.runner import Result, Unit, UnitWorker
from pipeline.shard.stage import ShardWorker
from pipeline.storage import open_store
from pipeline.units import StageFolder
from tests.handmade import HandmadeRoot

HASHES = "0" * 16
"""Fingerprint of a folder of hashes."""


class Downloader:
    """Commits the next batch of a handmade ROOT, with the folders that a worker of `download` has."""

    def __init__(self, root: str) -> None:
        store = open_store(root)
        made = HandmadeRoot(store)
        made.folders["download"] = StageFolder(store, "download", made.folders["download"].fingerprint, Fence(store))
        self._made = made

    def run(self, unit: Unit, alone: bool) -> Result:
        self._made.add_unit(unit["unit"], range(20))
        return {"state": "done"}


def worker(root: str, stage: str) -> UnitWorker:
    made = HandmadeRoot(open_store(root))
    if stage == "hashes":
        return HashWorker(root, made.folders["download"].fingerprint, HASHES, False, "dead")
    if stage == "shard":
        names = {name: folder.fingerprint for name, folder in made.folders.items()}
        return ShardWorker(root, made.recipe, names, "dead")
    return Downloader(root)


if __name__ == "__main__":
    _, root, stage, unit = sys.argv
    generation = HandmadeRoot(open_store(root)).folders["download"].generations().get(unit, 0)
    print(worker(root, stage).run({"unit": unit, "generation": generation, "rows": 1}, alone=False)["state"])
