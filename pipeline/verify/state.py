"""Everything a verification reads before it opens a table: batches, records of all generations, the list of files."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic import ValidationError

from pipeline.root import current_folders, read_batches
from pipeline.storage import Store
from pipeline.units import StageFolder, fingerprints
from schemas.recipe import ORDER
from schemas.records import Batch, FileEntry, UnitRecord

READERS = 16
_RECORD = re.compile(r"^(?P<stage>[a-z]+)/(?P<print>[0-9a-f]+)/units/(?P<unit>\d+-\d+)\.(?P<generation>\d+)\.json$")
UNRECORDED = re.compile(
    r"/(units|attempts|rounds|centroids|balance|heads)/|/(complete|dataset/(sizes|dataset)|sets|encoder|heads)\.json$|/clusters\.npz$"
)
"""Paths below a stage's folder that belong to it without being named by a record."""


@dataclass
class Folder:
    """A stage's folder with its records: (unit, generation) → record, and the current one of each unit."""

    folder: StageFolder
    all: dict[tuple[str, int], UnitRecord] = field(default_factory=dict)
    current: dict[str, UnitRecord] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return self.folder.base

    def files(self, record: UnitRecord, table: str) -> list[FileEntry]:
        return [entry for entry in record.files if entry.table == table]


@dataclass
class State:
    store: Store
    batches: dict[str, Batch]
    folders: list[Folder]
    """Of every stage and fingerprint."""
    current: dict[str, Folder]
    """stage → its current folder"""
    sizes: dict[str, int]
    """Every file below the stages' folders, relative to ROOT → bytes."""
    damaged: list[str]
    """Records that cannot be read."""

    def recorded(self) -> Iterator[tuple[str, FileEntry]]:
        """Each file any record names, once: path relative to ROOT, and its entry."""
        for folder in self.folders:
            seen = set()
            for record in folder.all.values():
                for entry in record.files:
                    if entry.path not in seen:
                        seen.add(entry.path)
                        yield f"{folder.base}/{entry.path}", entry

    def unrecorded(self) -> int:
        """Files under final names that no record names: left by a kill, removed by a sweep, never read."""
        named = {path for path, _ in self.recorded()}
        return sum(path not in named and not UNRECORDED.search(path) for path in self.sizes)


def read_state(store: Store) -> State:
    """Read the records. Memory: about 2 KB a record and 200 bytes a file."""
    sizes = {path: size for stage in ORDER for path, size in store.files(stage)}
    folders = {
        f"{stage}/{name}": Folder(StageFolder(store, stage, name))
        for stage in ORDER
        for name in fingerprints(store, stage)
    }
    found = sorted(path for path in sizes if _RECORD.match(path))

    def read(path: str) -> UnitRecord | None:
        try:
            return UnitRecord.model_validate_json(store.read(path))
        except ValidationError:
            return None

    damaged = []
    with ThreadPoolExecutor(READERS) as pool:
        for path, record in zip(found, pool.map(read, found), strict=True):
            if record is None:
                damaged.append(path)
                continue
            folder = folders["/".join(path.split("/")[:2])]
            folder.all[record.unit, record.generation] = record
            known = folder.current.get(record.unit)
            if known is None or known.generation < record.generation:
                folder.current[record.unit] = record
    current = {stage: folders[folder.base] for stage, folder in current_folders(store).items()}
    return State(store, read_batches(store), list(folders.values()), current, sizes, damaged)
