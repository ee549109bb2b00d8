"""Units: attempts, commits, generations and the sweep of a stage's folder, ROOT/<stage>/<fingerprint>/."""

import hashlib
import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise, starmap
from pathlib import Path

from pipeline.errors import LeaseLostError
from pipeline.faults import fault_point
from pipeline.fence import Fence
from pipeline.storage import Entry, Store
from schemas.records import Complete, Counts, FileEntry, UnitRecord, now

MAX_LONE_DEATHS = 5
"""Attempts that ran alone and whose worker died while its driver lived, before a unit's rows end as internal."""

_RECORD = re.compile(r"units/(?P<unit>\d+-\d+)\.(?P<generation>\d+)\.json$")
_FILE = re.compile(r"/(?P<unit>\d+-\d+)\.(?P<generation>\d+)\.(?P<attempt>\d+)\.[a-z0-9]+$")
_MARK = re.compile(r"attempts/(?P<unit>\d+-\d+)\.(?P<generation>\d+)\.(?P<number>\d+)(?P<withdrawn>\.withdrawn)?$")

_CHUNK = 2048
"""Records asked for at a time: enough to keep every connection busy, few enough to hold."""


@dataclass(frozen=True)
class Output:
    """A finished local file that a commit publishes; `name` is its final name where the layout fixes one."""

    table: str
    local: Path
    rows: int
    name: str | None = None


@dataclass(frozen=True)
class Attempt:
    unit: str
    generation: int
    number: int
    """From 1; never given twice, so it tells this attempt's files from every other's."""
    lone_deaths: int
    suspect: bool = False
    """An earlier attempt was neither committed nor withdrawn: run the unit alone."""


class StageFolder:
    """A stage's records and files. Safe to use from many processes: commits are exclusive creations."""

    def __init__(self, store: Store, stage: str, fingerprint: str, fence: Fence | None = None) -> None:
        """`fence`: for whoever may outlive its run; it commits nothing once that has changed."""
        self.store = store
        self.stage = stage
        self.fingerprint = fingerprint
        self.base = f"{stage}/{fingerprint}"
        self._fence = fence

    def generations(self) -> dict[str, int]:
        """unit → highest committed generation, from names alone."""
        found: dict[str, int] = {}
        for match in self._names("units", _RECORD):
            unit, generation = match["unit"], int(match["generation"])
            found[unit] = max(generation, found.get(unit, -1))
        return found

    def records(self) -> dict[str, UnitRecord]:
        """unit → current record, in the order of the units' names."""
        return {record.unit: record for record in self.iter_records()}

    def iter_records(self) -> Iterator[UnitRecord]:
        """The current records in the order of the units' names, a few thousand in memory at a time."""
        return self._read(sorted(self.generations().items()))

    def _read(self, wanted: Sequence[tuple[str, int]]) -> Iterator[UnitRecord]:
        if self.store.parallel_reads == 1:
            yield from starmap(self.record, wanted)
            return
        with ThreadPoolExecutor(self.store.parallel_reads) as pool:
            for start in range(0, len(wanted), _CHUNK):
                yield from pool.map(lambda item: self.record(*item), wanted[start : start + _CHUNK])

    def record(self, unit: str, generation: int) -> UnitRecord:
        """The record of one generation. Raises FileNotFoundError where it is not committed."""
        data = self.store.read(f"{self.base}/units/{unit}.{generation}.json")
        return UnitRecord.model_validate_json(data)

    def committed(self, unit: str, generation: int) -> UnitRecord | None:
        """The record of one generation, or None. Ask before work: Ray hands a dead actor's calls out again."""
        try:
            return self.record(unit, generation)
        except FileNotFoundError:
            return None

    def begin(self, unit: str, generation: int, run: str, alone: bool) -> Attempt:
        """Leave a mark before work starts, so that whoever comes next knows of a death."""
        mark: dict[str, object] = {"run": run, "alone": alone, "at": now(), "id": uuid.uuid4().hex}
        while True:
            earlier = self._marks(unit, generation)
            number = len(earlier) + 1
            if self.store.create(f"{self.base}/attempts/{unit}.{generation}.{number}", json.dumps(mark).encode()):
                break
        counted = [one for one in earlier if one is not None]
        deaths = sum(
            # The same run went on after this attempt, so its driver lived while the worker died.
            bool(previous["alone"]) and previous["run"] == following["run"]
            for previous, following in pairwise([*counted, mark])
        )
        return Attempt(unit, generation, number, deaths, suspect=bool(counted))

    @contextmanager
    def working(self, attempt: Attempt) -> Iterator[Path]:
        """A scratch folder for the attempt's files, removed at the end; an error withdraws the attempt: it is a full
        disk or a store that is gone, no fault of the unit's."""
        scratch = self.store.scratch()
        try:
            yield scratch
        except BaseException:
            self.withdraw(attempt)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def withdraw(self, attempt: Attempt) -> None:
        """Say that the attempt was given up in good order (SIGTERM, deferred), not killed.

        The mark stays and a second one withdraws it: a number that came free could be given to another attempt
        while a straggler of this one still publishes files under it.
        """
        self._withdraw(f"{self.base}/attempts/{attempt.unit}.{attempt.generation}.{attempt.number}")

    def withdraw_run(self, run: str) -> None:
        """Withdraw a stopped run's attempts at units it did not commit; only once its workers are gone."""
        committed = {match.group("unit", "generation") for match in self._names("units", _RECORD)}
        marks = list(self._names("attempts", _MARK))
        withdrawn = {match.group("unit", "generation", "number") for match in marks if match["withdrawn"]}
        for match in marks:
            if match.group("unit", "generation") in committed:
                continue
            if match.group("unit", "generation", "number") in withdrawn:
                continue
            path = f"{self.base}/{match[0]}"
            if json.loads(self.store.read(path))["run"] == run:
                self._withdraw(path)

    def _withdraw(self, mark: str) -> None:
        self.store.create(f"{mark}.withdrawn", b"withdrawn\n")

    def _marks(self, unit: str, generation: int) -> list[dict[str, object] | None]:
        """The marks left so far, by number from 1; None for those withdrawn."""
        found: list[dict[str, object] | None] = []
        path = f"{self.base}/attempts/{unit}.{generation}."
        while (tagged := self.store.read_tagged(f"{path}{len(found) + 1}")) is not None:
            withdrawn = self.store.size(f"{path}{len(found) + 1}.withdrawn") is not None
            found.append(None if withdrawn else json.loads(tagged[0]))
        return found

    def _names(self, folder: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        for path, _ in self.store.files(f"{self.base}/{folder}"):
            if match := pattern.search(path):
                yield match

    def commit(
        self, attempt: Attempt, outputs: Iterable[Output], counts: Counts, rows: int, input_digest: str,
        keep: Iterable[FileEntry] = (),
    ) -> UnitRecord:  # fmt: skip
        """Publish the outputs, then create the record exclusively; returns the record that counts.

        `keep` are files of an earlier generation that stay part of the unit. If another attempt has committed
        first, its record is returned and our files are removed. Raises LeaseLostError, our files removed, once the
        fence is up.
        """
        unit, generation = attempt.unit, attempt.generation
        if (winner := self.committed(unit, generation)) is not None:
            return winner  # and nothing of ours is written over what it names
        published: list[FileEntry] = []
        try:
            self._publish(attempt, outputs, published)
            record = UnitRecord(
                unit=unit, generation=generation, attempt=attempt.number, input_digest=input_digest,
                rows=rows, counts=counts, files=[*keep, *published],
            )  # fmt: skip
            fault_point("before-record", unit, self.stage)
            path = f"{self.base}/units/{unit}.{generation}.json"
            if self.store.create(path, record.to_bytes(), self._fence.check if self._fence else None):
                fault_point("after-record", unit, self.stage)
                return record
        except (LeaseLostError, FileNotFoundError):  # the latter where whoever raised the fence has cleared scratch
            self._take_back(attempt, published, named=())
            raise
        # Another attempt won. Only what this attempt published goes: `keep` belongs to an earlier generation, and a
        # name fixed by the layout is the winner's too.
        winner = self.record(unit, generation)
        self._take_back(attempt, published, {entry.path for entry in winner.files})
        return winner

    def _publish(self, attempt: Attempt, outputs: Iterable[Output], published: list[FileEntry]) -> None:
        """Publish the outputs; `published` gains an entry for each before it is there."""
        name_of = f"{attempt.unit}.{attempt.generation}.{attempt.number}"
        fault_point("before-publish", attempt.unit, self.stage)
        for output in outputs:
            name = output.name or f"{output.table}/{name_of}{output.local.suffix}"
            size, digest = measure(output.local)
            published.append(FileEntry(path=name, bytes=size, sha256=digest, rows=output.rows, table=output.table))
            if self._fence:
                self._fence.check()
            self.store.publish(output.local, f"{self.base}/{name}")
            fault_point("mid-publish", attempt.unit, self.stage)

    def _take_back(self, attempt: Attempt, published: Iterable[FileEntry], named: Collection[str]) -> None:
        """Remove what the attempt published under names of its own, and the winner's record does not name."""
        for entry in published:
            if entry.path not in named and _FILE.search(f"/{entry.path}"):
                self.store.delete(f"{self.base}/{entry.path}")

    def sweep(self) -> int:
        """Remove the files of killed and beaten attempts; returns how many."""
        left = self.leftovers()
        for path, _ in left:
            self.store.delete(path)
        return len(left)

    def leftovers(self) -> list[Entry]:
        """The files of killed and beaten attempts.

        A file is one only where the record of its own unit and generation exists and neither that record nor the
        unit's current one names it: so never one whose attempt may still commit.
        """
        files: dict[tuple[str, int], list[Entry]] = {}
        for entry in self.store.files(self.base):
            inside = entry.path.removeprefix(f"{self.base}/")
            if not inside.startswith(("units/", "attempts/")) and (match := _FILE.search(f"/{inside}")):
                files.setdefault((match["unit"], int(match["generation"])), []).append(entry)
        committed = {(match["unit"], int(match["generation"])) for match in self._names("units", _RECORD)}
        current: dict[str, int] = {}
        for unit, generation in committed:
            current[unit] = max(generation, current.get(unit, -1))
        due = files.keys() & committed
        named: dict[str, set[str]] = {}
        for record in self._read(sorted(due | {(unit, current[unit]) for unit, _ in due})):
            named.setdefault(record.unit, set()).update(f"{self.base}/{entry.path}" for entry in record.files)
        found = (
            entry for unit, generation in due for entry in files[unit, generation] if entry.path not in named[unit]
        )
        return sorted(found)

    def completed(self) -> Complete | None:
        tagged = self.store.read_tagged(f"{self.base}/complete.json")
        return Complete.model_validate_json(tagged[0]) if tagged else None

    def complete(
        self, records: Mapping[str, UnitRecord] | Iterable[UnitRecord], batches: list[str], latest: str | None
    ) -> bool:
        """Sweep, and fold the current records into complete.json; True if that changed. `iter_records()` streams.

        `latest` is the newest finished_at among the stage's other fingerprints: a later one than ours means that
        this folder has to say again that it is the current one. Raises LeaseLostError if another run writes
        complete.json at the same time.
        """
        path = f"{self.base}/complete.json"
        tagged = self.store.read_tagged(path)
        before = Complete.model_validate_json(tagged[0]) if tagged else None
        content = _folded(records.values() if isinstance(records, Mapping) else records, batches)
        same = before is not None and before.model_dump(exclude={"finished_at"}) == content
        if same and before is not None and (latest is None or before.finished_at > latest):
            return False
        self.sweep()  # before we say so: a run killed in between sweeps again
        finished = Complete.model_validate({**content, "finished_at": _after(latest)})
        if tagged is None:
            done = self.store.create(path, finished.to_bytes())
        else:
            done = self.store.swap(path, finished.to_bytes(), tagged[1])
        if not done:
            raise LeaseLostError(f"{self.store.uri}/{path}: another run has just written it; this run stops")
        return True

    def recount(self, records: Iterable[UnitRecord]) -> None:
        """Fold the records into complete.json again, as of the time it was finished: what is current stays current."""
        path = f"{self.base}/complete.json"
        tagged = self.store.read_tagged(path)
        if tagged is None:
            return
        before = Complete.model_validate_json(tagged[0])
        content = {**_folded(records, before.batches), "finished_at": before.finished_at}
        if not self.store.swap(path, Complete.model_validate(content).to_bytes(), tagged[1]):
            raise LeaseLostError(f"{self.store.uri}/{path}: another run has just written it; this run stops")


def _folded(records: Iterable[UnitRecord], batches: list[str]) -> dict[str, object]:
    """What complete.json says of the records."""
    rows = files = 0
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        rows += record.rows
        files += len(record.files)
        _add(counts, record.counts)
    return {"rows": rows, "counts": _nested(counts), "files": files, "batches": batches}


def _after(latest: str | None) -> str:
    """The current time, or a microsecond after `latest` where that clock was ahead of ours."""
    time = now()
    if latest is not None and time <= latest:
        later = datetime.fromisoformat(latest) + timedelta(microseconds=1)
        time = later.isoformat(timespec="microseconds")
    return time


def current_folder(store: Store, stage: str) -> StageFolder | None:
    """The stage's current folder: the one whose complete.json has the latest finished_at."""
    best: tuple[str, str] | None = None
    for fingerprint in fingerprints(store, stage):
        done = StageFolder(store, stage, fingerprint).completed()
        if done and (best is None or done.finished_at > best[0]):
            best = (done.finished_at, fingerprint)
    return StageFolder(store, stage, best[1]) if best else None


def fingerprints(store: Store, stage: str) -> list[str]:
    """Fingerprints under which the stage has been begun at least once."""
    return store.folders(stage)


def add_counts(parts: Iterable[Counts]) -> Counts:
    total: Counter[tuple[str, str]] = Counter()
    for counts in parts:
        _add(total, counts)
    return _nested(total)


def _add(total: Counter[tuple[str, str]], counts: Counts) -> None:
    for status, reasons in counts.items():
        for reason, rows in reasons.items():
            total[status, reason] += rows


def count(statuses: Iterable[str], reasons: Iterable[str | None]) -> Counts:
    """Counts of a column of statuses and one of reasons (null for ok)."""
    return _nested(Counter((status, reason or "") for status, reason in zip(statuses, reasons, strict=True)))


def _nested(total: Counter[tuple[str, str]]) -> Counts:
    folded: Counts = {}
    for (status, reason), rows in sorted(total.items()):
        folded.setdefault(status, {})[reason] = rows
    return folded


def measure(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, digest
