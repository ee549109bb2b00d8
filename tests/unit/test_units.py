"""Commit, attempts, generations and sweep: one record a unit and generation, and no file that no record names."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import LeaseLostError
from pipeline.storage import Store, open_store
from pipeline.units import Attempt, Output, StageFolder, current_folder
from schemas.records import UnitRecord, now
from tests.fault_proxy import FaultProxy, Rule

UNIT = "0001-0000001"


@pytest.fixture
def folder(root: str) -> StageFolder:
    return StageFolder(open_store(root), "download", "f1")


def outputs(folder: StageFolder, text: str, *tables: str, fixed: str | None = None) -> list[Output]:
    scratch = folder.store.scratch()
    made = []
    for table in tables:
        (scratch / f"{table}.bin").write_bytes(f"{table} {text}".encode())
        made.append(Output(table, scratch / f"{table}.bin", 1, fixed))
    return made


def commit(folder: StageFolder, attempt: Attempt, text: str = "", **more: object) -> UnitRecord:
    made = outputs(folder, text, "pool", "outcomes")
    return folder.commit(attempt, made, {"ok": {"": 1}}, 1, "digest", **more)  # type: ignore[arg-type]


def content(folder: StageFolder) -> dict[str, bytes]:
    """Every data file of the stage."""
    found = {}
    for path, _ in folder.store.files(folder.base):
        inside = path.removeprefix(f"{folder.base}/")
        if not inside.startswith(("units/", "attempts/")):
            found[inside] = folder.store.read(path)
    return found


def assert_sound(folder: StageFolder) -> None:
    """Every named file is there with its sha256, and nothing else is."""
    there, named = content(folder), {}
    for path, _ in folder.store.files(f"{folder.base}/units"):
        unit, generation, _ = path.rpartition("/")[2].split(".")
        named.update({entry.path: entry for entry in folder.record(unit, int(generation)).files})
    assert set(there) - {"complete.json"} == set(named)
    for path, entry in named.items():
        assert hashlib.sha256(there[path]).hexdigest() == entry.sha256
        assert len(there[path]) == entry.bytes


def test_a_commit_names_its_files_by_unit_generation_and_attempt(folder: StageFolder) -> None:
    record = commit(folder, folder.begin(UNIT, 0, "run", alone=False))
    assert [entry.path for entry in record.files] == [f"pool/{UNIT}.0.1.bin", f"outcomes/{UNIT}.0.1.bin"]
    assert folder.records() == {UNIT: record}
    assert folder.committed(UNIT, 0) == record
    assert folder.committed(UNIT, 1) is None
    assert_sound(folder)


def test_the_highest_generation_counts_and_keeps_earlier_files(folder: StageFolder) -> None:
    first = commit(folder, folder.begin(UNIT, 0, "run", alone=False), "old")
    kept = [entry for entry in first.files if entry.table == "pool"]
    for generation in (1, 2, 10):
        latest = commit(folder, folder.begin(UNIT, generation, "run", alone=False), "new", keep=kept)
    commit(folder, folder.begin("0001-0000002", 0, "run", alone=False))
    assert folder.generations() == {UNIT: 10, "0001-0000002": 0}
    assert folder.records()[UNIT] == latest
    assert latest.files[0] == kept[0]
    assert list(folder.records()) == [UNIT, "0001-0000002"]
    assert folder.sweep() == 0
    assert_sound(folder)


def test_of_two_attempts_one_commits_and_the_other_removes_only_its_own_files(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = commit(folder, folder.begin(UNIT, 0, "run", alone=False), "old")
    first, second = folder.begin(UNIT, 1, "a", alone=False), folder.begin(UNIT, 1, "b", alone=False)
    monkeypatch.setattr(folder, "committed", lambda unit, generation: None)  # both have looked before either commits
    won = commit(folder, first, "first")
    lost = commit(folder, second, "second", keep=old.files)
    assert lost == won
    assert won.attempt == first.number
    assert {path for path in content(folder) if ".2." in path} == set()
    assert_sound(folder)


def test_an_attempt_that_comes_late_writes_over_nothing(folder: StageFolder) -> None:
    first, second = folder.begin(UNIT, 0, "a", alone=False), folder.begin(UNIT, 0, "b", alone=False)
    counts = {"ok": {"": 1}}
    won = folder.commit(first, outputs(folder, "first", "tar", fixed="dataset/00000.tar"), counts, 1, "")
    late = folder.commit(second, outputs(folder, "second", "tar", fixed="dataset/00000.tar"), counts, 1, "")
    assert late == won
    assert content(folder) == {"dataset/00000.tar": b"tar first"}


def test_racing_attempts_get_different_numbers_and_leave_one_record(folder: StageFolder) -> None:
    records: list[UnitRecord] = []
    numbers: list[int] = []
    ready = threading.Barrier(6)

    def work(run: str) -> None:
        ready.wait()
        attempt = folder.begin(UNIT, 0, run, alone=False)
        numbers.append(attempt.number)
        records.append(commit(folder, attempt, run))

    threads = [threading.Thread(target=work, args=(f"run {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    assert {record.attempt for record in records} == {records[0].attempt}
    assert_sound(folder)


def test_a_unit_is_suspect_once_an_attempt_at_it_was_neither_committed_nor_withdrawn(folder: StageFolder) -> None:
    first = folder.begin(UNIT, 0, "a", alone=False)
    assert not first.suspect
    folder.withdraw(first)
    second = folder.begin(UNIT, 0, "b", alone=False)
    assert (second.number, second.suspect) == (2, False)
    third = folder.begin(UNIT, 0, "b", alone=False)
    assert (third.number, third.suspect) == (3, True)
    assert not folder.begin(UNIT, 1, "b", alone=False).suspect
    assert not folder.begin("0001-0000002", 0, "b", alone=False).suspect


def test_a_stopped_run_withdraws_its_own_open_attempts_only(folder: StageFolder) -> None:
    commit(folder, folder.begin("0001-0000001", 0, "a", alone=False))
    folder.begin("0001-0000002", 0, "a", alone=False)
    folder.begin("0001-0000003", 0, "b", alone=False)
    folder.withdraw_run("a")
    folder.withdraw_run("a")
    assert not folder.begin("0001-0000002", 0, "c", alone=False).suspect
    assert folder.begin("0001-0000003", 0, "c", alone=False).suspect


@pytest.mark.parametrize(
    ("history", "deaths"),
    [
        ("A A A A A a", 5),
        ("a a a a a a", 0),
        ("A B C D", 0),
        ("A A B B", 2),
        ("a A A A", 2),
        ("a", 0),
    ],
)
def test_only_attempts_that_ran_alone_under_a_driver_that_lived_count_as_deaths(
    tmp_path: Path, history: str, deaths: int
) -> None:
    """A letter is an attempt of that run; a capital ran alone. The last is the one that asks."""
    folder = StageFolder(open_store(str(tmp_path)), "download", "f1")
    for letter in history.split():
        attempt = folder.begin(UNIT, 0, letter.lower(), letter.isupper())
    assert attempt.lone_deaths == deaths


def test_deferred_attempts_between_do_not_hide_or_make_deaths(folder: StageFolder) -> None:
    for _ in range(3):
        folder.begin(UNIT, 0, "a", alone=True)
        folder.withdraw(folder.begin(UNIT, 0, "a", alone=False))
    assert folder.begin(UNIT, 0, "a", alone=True).lone_deaths == 3


COMMIT = """
import sys
from pipeline.storage import open_store
from pipeline.units import Output, StageFolder
folder = StageFolder(open_store(sys.argv[1]), "download", "f1")
made = []
for table in ("pool", "outcomes"):
    local = folder.store.scratch() / f"{table}.bin"
    local.write_bytes(b"killed")
    made.append(Output(table, local, 1))
folder.commit(folder.begin(sys.argv[2], 0, "killed", alone=False), made, {"ok": {"": 1}}, 1, "digest")
"""


@pytest.mark.parametrize("point", ["before-publish", "mid-publish", "before-record", "after-record"])
def test_a_commit_killed_anywhere_is_redone_to_one_record_and_no_orphan(
    root: str, folder: StageFolder, tmp_path: Path, point: str
) -> None:
    environment = {**os.environ, "PAIRMILL_FAULT": f"{point}@{UNIT}:kill:{tmp_path / 'flag'}"}
    killed = subprocess.run([sys.executable, "-c", COMMIT, root, UNIT], env=environment, check=False)
    assert killed.returncode == -9
    assert folder.sweep() == 0  # nothing of an uncommitted unit goes, nothing of a committed one is too much
    again = folder.begin(UNIT, 0, "again", alone=True)
    assert (again.number, again.suspect) == (2, True)
    record = commit(folder, again, "again")
    assert record.attempt == (1 if point == "after-record" else 2)
    assert folder.sweep() == {"before-publish": 0, "mid-publish": 1, "before-record": 2, "after-record": 0}[point]
    assert folder.sweep() == 0
    assert_sound(folder)


def test_a_record_whose_reply_is_lost_is_the_attempts_own(s3: str, s3_proxy: FaultProxy) -> None:
    folder = StageFolder(open_store(s3), "download", "f1")
    s3_proxy.rules = [Rule(answer="reset", after=True, method="PUT", key="units/", count=1)]
    attempt = folder.begin(UNIT, 0, "run", alone=False)
    assert commit(folder, attempt).attempt == attempt.number
    assert s3_proxy.faults == 1
    assert_sound(folder)


def test_a_sweep_never_takes_a_file_whose_attempt_may_still_commit(folder: StageFolder, tmp_path: Path) -> None:
    store: Store = folder.store
    commit(folder, folder.begin(UNIT, 0, "run", alone=False))
    open_files = [f"pool/{UNIT}.1.1.tar", "pool/0001-0000002.0.1.tar", "dataset/00000.tar", "notes.txt"]
    for name in (*open_files, f"pool/{UNIT}.0.7.tar"):
        store.replace(f"{folder.base}/{name}", b"x")
    store.replace(f"download/f2/pool/{UNIT}.0.9.tar", b"x")
    assert folder.sweep() == 1
    assert set(open_files) < set(content(folder))
    assert f"pool/{UNIT}.0.7.tar" not in content(folder)
    assert store.size(f"download/f2/pool/{UNIT}.0.9.tar") == 1


def test_a_sweep_keeps_what_the_old_or_the_current_record_names(folder: StageFolder) -> None:
    first = commit(folder, folder.begin(UNIT, 0, "run", alone=False), "old")
    commit(folder, folder.begin(UNIT, 1, "run", alone=False), "new", keep=first.files[:1])
    assert folder.sweep() == 0
    assert_sound(folder)


def test_complete_json_changes_only_with_what_it_folds(folder: StageFolder) -> None:
    commit(folder, folder.begin(UNIT, 0, "run", alone=False))
    assert folder.complete(folder.records(), ["0001"], None)
    done = folder.completed()
    assert done is not None
    assert (done.rows, done.counts, done.files, done.batches) == (1, {"ok": {"": 1}}, 2, ["0001"])
    assert not folder.complete(folder.iter_records(), ["0001"], None)
    assert folder.completed() == done
    commit(folder, folder.begin("0001-0000002", 0, "run", alone=False))
    assert folder.complete(folder.iter_records(), ["0001"], None)
    assert folder.complete(folder.iter_records(), ["0001", "0002"], None)


def test_going_back_to_an_older_fingerprint_makes_it_current_again_even_if_its_clock_is_behind(
    folder: StageFolder,
) -> None:
    other = StageFolder(folder.store, "download", "f2")
    assert current_folder(folder.store, "download") is None
    folder.complete({}, [], None)
    other.complete({}, [], now())
    for latest in (folder, other, folder):
        before = [one.completed() for one in (folder, other) if one is not latest]
        assert latest.complete({}, [], max(one.finished_at for one in before if one))
        current = current_folder(folder.store, "download")
        assert current is not None
        assert current.fingerprint == latest.fingerprint
    ahead = "2999-01-01T00:00:00.000000+00:00"
    assert folder.complete({}, [], ahead)
    done = folder.completed()
    assert done is not None
    assert done.finished_at > ahead
    assert not folder.complete({}, [], ahead)


def test_of_two_runs_that_fold_at_the_same_time_one_finds_that_it_lost_the_root(folder: StageFolder) -> None:
    def ours_while_they_write() -> Iterator[UnitRecord]:
        StageFolder(folder.store, "download", "f1").complete([], ["theirs"], None)
        yield from ()

    with pytest.raises(LeaseLostError):
        folder.complete(ours_while_they_write(), ["ours"], None)
    done = folder.completed()
    assert done is not None
    assert done.batches == ["theirs"]
