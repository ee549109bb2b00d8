"""The lease: one run at a time on a ROOT, and a dead run's ROOT taken over by exactly one other."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from pipeline.errors import HeldError, InputError, LeaseLostError
from pipeline.lease import Lease
from pipeline.liveness import boot_id, host, started
from pipeline.storage import Store, open_store
from schemas.records import LeaseRecord
from tests.fault_proxy import FaultProxy, Rule

FORK = multiprocessing.get_context("fork")


class WatchersClock:
    """Time passes only while the watcher waits; `meanwhile` is what happens elsewhere then."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.time = 0.0
        self._meanwhile = meanwhile

    def monotonic(self) -> float:
        return self.time

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        if threading.current_thread().name == "lease":
            return wake.wait()  # once held, the lease is renewed only where a test says so
        self.time += seconds
        self._meanwhile()
        return False


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


def held_elsewhere(store: Store, **changes: object) -> LeaseRecord:
    """A lease.json as a run on another machine would leave it."""
    record = LeaseRecord(
        holder="their-run", host="elsewhere", boot_id="their-boot", pid=1, pid_started="1", ray_job=None, epoch=7,
        renewed=3,
    ).model_copy(update=changes)  # fmt: skip
    store.replace("lease.json", record.to_bytes())
    return record


def written(store: Store) -> LeaseRecord:
    return LeaseRecord.model_validate_json(store.read("lease.json"))


def test_a_lease_says_who_holds_the_root_and_is_gone_after_release(store: Store) -> None:
    with Lease.acquire(store, "run-1", WatchersClock()) as lease:
        record = written(store)
        assert (record.holder, record.host, record.boot_id, record.pid) == ("run-1", host(), boot_id(), os.getpid())
        assert record.pid_started == started(os.getpid())
        assert lease.epoch == 1
        lease.renew()
        lease.check()
        assert written(store).renewed == record.renewed + 1
    lease.release()
    assert store.size("lease.json") is None
    Lease.acquire(store, "run-2", WatchersClock()).release()


def test_a_root_held_by_a_living_process_here_is_refused_at_once_and_the_holder_named(store: Store) -> None:
    clock = WatchersClock()
    with (
        Lease.acquire(store, "run-1", clock),
        pytest.raises(HeldError, match=rf"run-1 \(host {host()}, pid {os.getpid()}\)") as raised,
    ):
        Lease.acquire(store, "run-2", clock)
    assert clock.time == 0
    assert "\n" not in str(raised.value)


ACQUIRE = """
import sys, time
from pipeline.lease import Lease
from pipeline.storage import open_store
lease = Lease.acquire(open_store(sys.argv[1]), "dead-run")
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("collected", [True, False], ids=["reaped", "zombie"])
def test_a_killed_holders_root_is_taken_over_at_once(root: str, store: Store, collected: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", ACQUIRE, root], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(HeldError, match="dead-run"):  # stopped is not dead
        Lease.acquire(store, "run-2", WatchersClock())
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if collected:
        child.wait()
    clock = WatchersClock()
    with Lease.acquire(store, "run-2", clock) as lease:
        assert (lease.epoch, clock.time) == (2, 0)
    child.wait()
    child.stdout.close()


def test_a_reused_pid_is_not_taken_for_the_holder(store: Store) -> None:
    held_elsewhere(store, host=host(), boot_id=boot_id(), pid=os.getpid(), pid_started="12")
    with Lease.acquire(store, "run", WatchersClock()) as lease:
        assert lease.epoch == 8


@pytest.mark.parametrize("changes", [{}, {"host": host()}, {"boot_id": boot_id()}], ids=["both", "boot id", "host"])
def test_a_pid_of_another_host_or_boot_is_not_judged_but_watched_for_a_minute(
    store: Store, changes: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    held_elsewhere(store, pid=2**22 + 1, **changes)  # no process has this pid
    clock = WatchersClock()
    with caplog.at_level(logging.INFO), Lease.acquire(store, "run", clock) as lease:
        assert lease.epoch == 8
    assert 60 <= clock.time < 65
    waiting = [line for line in caplog.messages if "waiting" in line]
    assert len(waiting) == 1
    assert "their-run" in waiting[0]


def test_a_holder_that_renews_while_it_is_watched_is_alive(store: Store) -> None:
    record = held_elsewhere(store)
    renewals = iter(range(100))

    def renew() -> None:
        if clock.time > 50:
            store.replace("lease.json", record.model_copy(update={"renewed": 10 + next(renewals)}).to_bytes())

    clock = WatchersClock(renew)
    with pytest.raises(HeldError, match="their-run"):
        Lease.acquire(store, "run", clock)
    assert 50 < clock.time < 60


def test_a_lease_released_while_it_is_watched_is_taken(store: Store) -> None:
    held_elsewhere(store)
    clock = WatchersClock(lambda: store.delete("lease.json"))
    with Lease.acquire(store, "run", clock) as lease:
        assert lease.epoch == 1
    assert clock.time < 10


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "STOPPED", "FAILED", "SUCCEEDED", None])
def test_a_ray_job_that_this_cluster_knows_decides_by_its_state(store: Store, state: str | None) -> None:
    held_elsewhere(store, ray_job="raysubmit_1")
    clock = WatchersClock()

    def acquire() -> Lease:
        return Lease.acquire(store, "run", clock, job_state={"raysubmit_1": state}.get)

    if state in ("RUNNING", "PENDING"):
        with pytest.raises(HeldError, match="Ray job raysubmit_1"):
            acquire()
    else:
        acquire().release()
    assert (clock.time >= 60) == (state is None)


def _race(root: str, results: "multiprocessing.SimpleQueue[str]", done: "multiprocessing.synchronize.Event") -> None:
    try:
        lease = Lease.acquire(open_store(root), f"racer-{os.getpid()}")
    except HeldError as error:
        results.put(str(error))
    else:
        results.put("won")
        done.wait()
        lease.release()


@pytest.mark.parametrize("dead", [False, True], ids=["free", "holder dead"])
def test_of_racing_runs_one_gets_the_root_and_the_others_name_it(root: str, store: Store, dead: bool) -> None:
    if dead:
        held_elsewhere(store, host=host(), boot_id=boot_id(), pid=2**22 + 1)
    results: multiprocessing.SimpleQueue[str] = FORK.SimpleQueue()
    done = FORK.Event()
    racers = [FORK.Process(target=_race, args=(root, results, done)) for _ in range(6)]
    for racer in racers:
        racer.start()
    ends = sorted(results.get() for _ in racers)
    holder = written(store)
    assert holder.epoch == (8 if dead else 1)
    done.set()
    for racer in racers:
        racer.join()
    assert ends[-1] == "won"
    assert all(f"held by run {holder.holder} " in end for end in ends[:-1])
    assert store.size("lease.json") is None


def test_whoever_finds_its_lease_taken_stops_and_leaves_the_takers_alone(store: Store) -> None:
    called: list[bool] = []
    lease = Lease.acquire(store, "run", WatchersClock(), on_lost=lambda: called.append(True))
    taken = held_elsewhere(store, epoch=2)
    lease.renew()
    lease.renew()
    assert lease.lost
    assert called == [True]
    with pytest.raises(LeaseLostError, match="their-run"):
        lease.check()
    lease.release()
    assert written(store) == taken


def test_a_run_that_slept_asks_before_it_goes_on(store: Store) -> None:
    clock = WatchersClock()
    lease = Lease.acquire(store, "run", clock)
    held_elsewhere(store)
    lease.check()  # renewed a moment ago: nobody can have taken it by the rules
    clock.time += 31
    with pytest.raises(LeaseLostError):
        lease.check()


def test_a_lease_that_somebody_removed_is_lost(store: Store) -> None:
    lease = Lease.acquire(store, "run", WatchersClock())
    store.delete("lease.json")
    lease.renew()
    with pytest.raises(LeaseLostError, match="removed"):
        lease.check()


def test_a_held_lease_is_renewed_by_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lease.RENEW_S", 0.05)
    with Lease.acquire(store, "run") as lease:
        while written(store).renewed < 3:
            threading.Event().wait(0.02)
        lease.check()
    assert store.size("lease.json") is None


@pytest.mark.parametrize("data", [b"{}", b'{"holder": "x"', b"\xff\x00", b'{"holder": "x", "version": 2}'])
def test_a_lease_that_is_none_is_one_line_that_says_what_to_do(store: Store, data: bytes) -> None:
    store.replace("lease.json", data)
    with pytest.raises(InputError, match=r"lease\.json is not a lease.*delete that file") as raised:
        Lease.acquire(store, "run", WatchersClock())
    assert "\n" not in str(raised.value)
    assert store.read("lease.json") == data


def test_renewals_survive_lost_replies(s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.acquire(open_store(s3), "run", WatchersClock())
    s3_proxy.rules = [Rule(answer="reset", after=True, method="PUT", count=1)]
    lease.renew()
    monkeypatch.setattr("pipeline.s3.TRIES", 1)
    s3_proxy.rules = [Rule(answer="reset", after=True, method="PUT", count=1)]
    lease.renew()  # written, and we were never told
    lease.renew()
    lease.check()
    assert json.loads(open_store(s3).read("lease.json"))["renewed"] == 3
    lease.release()
    assert open_store(s3).size("lease.json") is None


def test_a_store_silent_for_a_minute_costs_the_lease_and_for_less_does_not(
    s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.s3.TRIES", 1)
    clock = WatchersClock()
    lease = Lease.acquire(open_store(s3), "run", clock)
    s3_proxy.rules = [Rule(answer=503)]
    clock.time += 45
    lease.check()
    clock.time += 16
    with pytest.raises(LeaseLostError, match="could not be renewed"):
        lease.check()
    lease.release()


def test_a_release_that_the_store_refuses_is_a_warning(
    s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.s3.TRIES", 1)
    with Lease.acquire(open_store(s3), "run", WatchersClock()):
        s3_proxy.rules = [Rule(answer=503)]
    assert "not removed" in caplog.text
