"""Units: attempts, commits, generations and the sweep of a stage's folder, ROOT/<stage>/<fingerprint>/."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.faults import fault_point
from pipeline.storage import Store
from schemas.records import Complete, Counts, FileEntry, UnitRecord, now

MAX_LONE_DEATHS = 5
"""Attempts that ran alone and whose worker died while its driver lived, before a unit's rows end as internal."""

_RECORD = re.compile(r"units/(?P<unit>\d+-\d+)\.(?P<generation>\d+)\.json$")
_FILE = re.compile(r"/(?P<unit>\d+-\d+)\.(?P<generation>\d+)\.(?P<attempt>\d+)\.[a-z]+$")


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
    lone_deaths: int


class StageFolder:
    """A stage's records and files. Safe to use from many processes: commits are exclusive creations."""

    def __init__(self, store: Store, stage: str, fingerprint: str) -> None:
        self.store = store
        self.stage = stage
        self.fingerprint = fingerprint
        self.base = f"{stage}/{fingerprint}"

    def generations(self) -> dict[str, int]:
        """unit → highest committed generation, from names alone."""
        found: dict[str, int] = {}
        for path, _ in self.store.files(f"{self.base}/units"):
            match = _RECORD.search(path)
            if match:
                unit, generation = match["unit"], int(match["generation"])
                found[unit] = max(generation, found.get(unit, -1))
        return found

    def records(self) -> dict[str, UnitRecord]:
        """unit → current record, in the order of the units' names."""
        wanted = sorted(self.generations().items())
        with ThreadPoolExecutor(16) as pool:
            return {record.unit: record for record in pool.map(lambda item: self.record(*item), wanted)}

    def record(self, unit: str, generation: int) -> UnitRecord:
        data = self.store.read(f"{self.base}/units/{unit}.{generation}.json")
        return UnitRecord.model_validate_json(data)

    def begin(self, unit: str, generation: int, run: str, alone: bool) -> Attempt:
        """Leave a mark before work starts, so that whoever comes next knows of a death."""
        prefix = f"{self.base}/attempts"
        earlier = self._attempts(unit, generation)
        number = max(earlier, default=0) + 1
        mark = {"run": run, "alone": alone, "at": now()}
        while not self.store.create(f"{prefix}/{unit}.{generation}.{number}", json.dumps(mark).encode()):
            number += 1
        deaths = 0
        for previous, following in pairwise([*earlier.values(), mark]):
            # The same run went on after this attempt, so its driver lived while the worker died.
            deaths += bool(previous["alone"]) and previous["run"] == following["run"]
        return Attempt(unit, generation, number, deaths)

    def withdraw(self, attempt: Attempt) -> None:
        """Take the mark back: the attempt was given up in good order (SIGTERM), not killed."""
        self.store.delete(f"{self.base}/attempts/{attempt.unit}.{attempt.generation}.{attempt.number}")

    def withdraw_run(self, run: str) -> None:
        """Take back a stopped run's marks on units it did not commit; only once its workers are gone."""
        committed = set(self.generations().items())
        for path, _ in list(self.store.files(f"{self.base}/attempts")):
            unit, generation, _ = path.rpartition("/")[2].split(".")
            if (unit, int(generation)) not in committed and json.loads(self.store.read(path))["run"] == run:
                self.store.delete(path)

    def _attempts(self, unit: str, generation: int) -> dict[int, dict[str, object]]:
        found: dict[int, dict[str, object]] = {}
        path = f"{self.base}/attempts/{unit}.{generation}."
        while (tagged := self.store.read_tagged(f"{path}{len(found) + 1}")) is not None:
            found[len(found) + 1] = json.loads(tagged[0])
        return found

    def commit(
        self, attempt: Attempt, outputs: Iterable[Output], counts: Counts, rows: int, input_digest: str,
        keep: Iterable[FileEntry] = (),
    ) -> UnitRecord:  # fmt: skip
        """Publish the outputs, then create the record exclusively; returns the record that counts.

        `keep` are files of an earlier generation that stay part of the unit. If another attempt has committed
        first, its record is returned and our files are removed.
        """
        unit, generation = attempt.unit, attempt.generation
        entries = list(keep)
        fault_point("before-publish", unit)
        for output in outputs:
            name = output.name or (f"{output.table}/{unit}.{generation}.{attempt.number}{output.local.suffix}")
            size, digest = measure(output.local)
            self.store.publish(output.local, f"{self.base}/{name}")
            entries.append(FileEntry(path=name, bytes=size, sha256=digest, rows=output.rows, table=output.table))
        record = UnitRecord(
            unit=unit, generation=generation, attempt=attempt.number, input_digest=input_digest,
            rows=rows, counts=counts, files=entries,
        )  # fmt: skip
        fault_point("before-record", unit)
        if self.store.create(f"{self.base}/units/{unit}.{generation}.json", record.to_bytes()):
            fault_point("after-record", unit)
            return record
        winner = self.record(unit, generation)
        named = {entry.path for entry in winner.files}
        for entry in entries:
            if entry.path not in named and _FILE.search(entry.path):
                self.store.delete(f"{self.base}/{entry.path}")
        return winner

    def sweep(self) -> int:
        """Remove files that a committed unit's record does not name; returns how many."""
        current = self.records()
        committed = {
            (match["unit"], int(match["generation"]))
            for path, _ in self.store.files(f"{self.base}/units")
            if (match := _RECORD.search(path))
        }
        own: dict[tuple[str, int], set[str]] = {}
        removed = 0
        for path, _ in list(self.store.files(self.base)):
            match = _FILE.search(path)
            if not match:
                continue
            key = (match["unit"], int(match["generation"]))
            if key not in committed:
                continue
            if key not in own:
                own[key] = {entry.path for entry in self.record(*key).files}
                own[key] |= {entry.path for entry in current[key[0]].files}
            if path.removeprefix(f"{self.base}/") not in own[key]:
                self.store.delete(path)
                removed += 1
        return removed

    def completed(self) -> Complete | None:
        tagged = self.store.read_tagged(f"{self.base}/complete.json")
        return Complete.model_validate_json(tagged[0]) if tagged else None

    def complete(self, records: dict[str, UnitRecord], batches: list[str], latest: str | None) -> bool:
        """Fold the current records into complete.json; True if it changed.

        `latest` is the newest finished_at among the stage's other fingerprints: a later one than ours means that
        this folder has to say again that it is the current one.
        """
        content = {
            "rows": sum(record.rows for record in records.values()),
            "counts": add_counts(record.counts for record in records.values()),
            "files": sum(len(record.files) for record in records.values()),
            "batches": batches,
        }
        before = self.completed()
        same = before is not None and before.model_dump(exclude={"finished_at"}) == content
        if same and (latest is None or before is None or before.finished_at > latest):
            return False
        finished = Complete.model_validate({**content, "finished_at": now()})
        self.store.replace(f"{self.base}/complete.json", finished.to_bytes())
        return True


def current_folder(store: Store, stage: str) -> StageFolder | None:
    """The stage's current folder: the one whose complete.json has the latest finished_at."""
    best: tuple[str, str] | None = None
    for fingerprint in fingerprints(store, stage):
        done = StageFolder(store, stage, fingerprint).completed()
        if done and (best is None or done.finished_at > best[0]):
            best = (done.finished_at, fingerprint)
    return StageFolder(store, stage, best[1]) if best else None


def fingerprints(store: Store, stage: str) -> list[str]:
    """Fingerprints under which the stage has been completed at least once."""
    return store.folders(stage)


def add_counts(parts: Iterable[Counts]) -> Counts:
    total: Counter[tuple[str, str]] = Counter()
    for counts in parts:
        for status, reasons in counts.items():
            for reason, rows in reasons.items():
                total[status, reason] += rows
    return _nested(total)


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
