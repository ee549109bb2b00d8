"""The commit protocol on a store that fails one request in five, before or after it has acted."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.lease import Lease
from pipeline.storage import open_store
from pipeline.units import Output, StageFolder
from tests.fault_proxy import FaultProxy, Rule

FORK = multiprocessing.get_context("fork")
UNITS = [f"0001-{number:07}" for number in range(200)]
TWENTY_PERCENT = [
    Rule(answer="reset", share=0.04),
    Rule(answer="reset", after=True, share=0.05),
    Rule(answer=503, share=0.04),
    Rule(answer=500, after=True, share=0.04),
    Rule(answer=409, method="PUT", share=0.06),
    Rule(answer="cut", method="GET", share=0.04),
]


def work(root: str, run: str, units: Sequence[str], fault: str = "") -> None:
    """What a stage's worker does: a mark, files, a record."""
    if fault:
        os.environ["PAIRMILL_FAULT"] = fault
    folder = StageFolder(open_store(root), "download", "f1")
    for unit in units:
        if folder.committed(unit, 0):
            continue
        attempt = folder.begin(unit, 0, run, alone=False)
        local = folder.store.scratch() / "pool.tar"
        local.write_bytes(f"{unit} {run}".encode() * 50)
        folder.commit(attempt, [Output("pool", local, 1)], {"ok": {"": 1}}, 1, "digest")


def test_two_hundred_units_commit_exactly_once_through_a_store_that_fails_one_request_in_five(
    s3: str, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    s3_proxy.rules = [*TWENTY_PERCENT]
    # Each unit has an owner; a fifth of them is also tried by a rival at about the same time, in another order.
    shares = [UNITS[first::8] for first in range(8)]
    processes = []
    for number, own in enumerate(shares):
        rival = shares[(number + 1) % 8][:5]
        units = rival + own if number % 2 else own[:5] + rival + own[5:]
        # One dies in the middle; the next run redoes what it left.
        fault = f"before-record@{own[10]}:kill:{tmp_path / 'killed'}" if number == 7 else ""
        processes.append(FORK.Process(target=work, args=(s3, f"run-{number}", units, fault)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 7 + [-signal.SIGKILL]
    work(s3, "next-run", random.Random(1).sample(UNITS, len(UNITS)))
    share = s3_proxy.faults / s3_proxy.requests.total()
    assert 0.15 < share < 0.3, share

    folder = StageFolder(open_store(s3), "download", "f1")
    folder.sweep()
    s3_proxy.rules = []
    assert folder.sweep() == 0
    records = folder.records()
    assert sorted(records) == UNITS
    assert len(list(folder.store.files(f"{folder.base}/units"))) == len(UNITS)
    named = {entry.path: entry.sha256 for record in records.values() for entry in record.files}
    there = {path.removeprefix(f"{folder.base}/") for path, _ in folder.store.files(f"{folder.base}/pool")}
    assert there == set(named)
    for path, sha256 in named.items():
        assert hashlib.sha256(folder.store.read(f"{folder.base}/{path}")).hexdigest() == sha256


def test_a_lease_is_kept_for_hours_on_such_a_store(s3: str, s3_proxy: FaultProxy) -> None:
    lease = Lease.acquire(open_store(s3), "run")
    s3_proxy.rules = [*TWENTY_PERCENT]
    for _ in range(40):
        lease.renew()
    lease.check()
    assert json.loads(open_store(s3).read("lease.json"))["renewed"] == 40
    lease.release()
    assert open_store(s3).size("lease.json") is None


def test_a_store_that_is_gone_ends_the_commit_without_a_record_and_the_next_attempt_succeeds(
    s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.s3.TRIES", 2)
    s3_proxy.rules = [Rule(answer=503, method="PUT", key="units/")]
    with pytest.raises(StoreError, match="SlowDown"):
        work(s3, "run", UNITS[:1])
    folder = StageFolder(open_store(s3), "download", "f1")
    assert folder.records() == {}
    assert folder.sweep() == 0
    s3_proxy.rules = []
    work(s3, "run", UNITS[:1])
    assert list(folder.records()) == UNITS[:1]
    assert folder.sweep() == 1
