"""The lease: one run at a time on a ROOT, and a dead run's ROOT taken over by exactly one other.

ROOT/lease.json names the holder; its holder rewrites it every 15 s, each time only if it is still what it wrote last
(If-Match). So a taker-over and a holder that wakes up cannot both succeed.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from pydantic import ValidationError

from pipeline.cluster import job_id
from pipeline.errors import HeldError, InputError, LeaseLostError
from pipeline.liveness import boot_id, host, started, this_process
from pipeline.storage import Store
from schemas.records import LeaseRecord

log = logging.getLogger(__name__)

PATH = "lease.json"
RENEW_S = 15.0
STALE_S = 60.0
"""Seconds of the watcher's monotonic clock in which an unchanged ETag means that the holder is gone."""
LOOK_S = 2.0
"""Seconds between two looks at somebody else's lease."""

JobState = Callable[[str], str | None]
"""Ray submission id → its state in this cluster, or None where this cluster does not know it."""


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        """Sleep, but no longer than until `wake` is set; True if it is."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        return wake.wait(seconds)


class Lease:
    """A held lease, renewed by a daemon thread until `release`. Made by `acquire`; a context manager."""

    def __init__(self, store: Store, record: LeaseRecord, clock: Clock, on_lost: Callable[[], None] | None) -> None:
        """Take over the renewal of a record that `acquire` has just written."""
        self.on_lost = on_lost
        """Called once, in whatever thread notices first, when the lease is lost; may be set later."""
        self._store = store
        self._record = record
        self._clock = clock
        self._renewed_at = clock.monotonic()
        self._lost: str | None = None
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls, store: Store, run: str, clock: Clock | None = None, on_lost: Callable[[], None] | None = None,
        job_state: JobState | None = None,
    ) -> "Lease":  # fmt: skip
        """Hold the ROOT for `run`, waiting up to a minute where the holder's death has to be watched.

        Raises HeldError if another run holds it, InputError if lease.json is none of ours, StoreError.
        """
        clock = clock or SystemClock()
        record = _Watch(store, run, clock, job_state or ray_job_state).win()
        return cls(store, record, clock, on_lost)

    @property
    def epoch(self) -> int:
        """Grows by one at every take-over."""
        return self._record.epoch

    @property
    def lost(self) -> bool:
        return self._lost is not None

    def check(self) -> None:
        """Raise LeaseLostError if the lease is lost; asks the store if too long ago it was surely ours."""
        if self._lost is None and self._clock.monotonic() - self._renewed_at > 2 * RENEW_S:
            self.renew()
        if self._lost is not None:
            raise LeaseLostError(self._lost)

    def renew(self) -> None:
        """Write the lease once more. A store that does not answer for a minute costs the lease."""
        with self._lock:
            if self._ended.is_set() or self._lost is not None:
                return
            self._lost = self._renewed()
            lost = self._lost is not None
        if lost and self.on_lost is not None:
            self.on_lost()

    def _renewed(self) -> str | None:
        """None, or why the lease is lost."""
        # Counted from before the request: whoever watches may have seen our last change that early.
        begun = self._clock.monotonic()
        try:
            current = self._store.read_tagged(PATH)
            # An earlier renewal may have been written although no answer came, so the count is not compared.
            if current is not None and (found := self._ours(current[0])) is not None:
                following = found.model_copy(update={"renewed": found.renewed + 1})
                if self._store.swap(PATH, following.to_bytes(), current[1]):
                    self._renewed_at = begun
                    return None
                current = self._store.read_tagged(PATH)
        except OSError as error:
            if self._clock.monotonic() - self._renewed_at < STALE_S:
                log.warning("lease: not renewed, trying again: %s", error)
                return None
            return f"{self._store.uri}: the lease could not be renewed for {STALE_S:.0f} s: {error}"
        return f"{self._store.uri}: the lease was lost{_new_holder(current)}; this run stops"

    def _ours(self, data: bytes) -> LeaseRecord | None:
        try:
            found = LeaseRecord.model_validate_json(data)
        except ValidationError:
            return None
        return found if found == self._record.model_copy(update={"renewed": found.renewed}) else None

    def release(self) -> None:
        """Give the ROOT back; removes lease.json only if it is still ours. Safe to call twice."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            if self._lost is not None:
                return
            try:
                current = self._store.read_tagged(PATH)
                if current is not None and self._ours(current[0]) is not None:
                    self._store.delete(PATH, current[1])
            except OSError as error:
                log.warning("lease: not removed, so the next run may have to wait for a minute: %s", error)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep(self) -> None:
        while not self._clock.wait(self._ended, RENEW_S) and not self.lost:
            self.renew()


class _Watch:
    """One run's try to get the lease: judges whoever holds it."""

    def __init__(self, store: Store, run: str, clock: Clock, job_state: JobState) -> None:
        self._store = store
        self._run = run
        self._clock = clock
        self._job_state = job_state
        self._pid, self._pid_started = this_process()

    def win(self) -> LeaseRecord:
        seen: str | None = None
        since = 0.0
        while True:
            tagged = self._store.read_tagged(PATH)
            if tagged is None:
                mine = self._mine(1)
                if self._store.create(PATH, mine.to_bytes()):
                    return mine
                continue
            data, etag = tagged
            holder = self._parse(data)
            dead = self._judge(holder)
            if dead is False or (dead is None and seen not in (None, etag)):
                # Alive: its pid or its job says so, or it has just been renewed.
                raise self._held(holder)
            if dead is None and seen is None:
                seen, since = etag, self._clock.monotonic()
                log.warning(
                    "%s is held by run %s (host %s, pid %d); waiting up to %.0f s to see whether that run still lives",
                    self._store.uri, holder.holder, holder.host, holder.pid, STALE_S,
                )  # fmt: skip
            if dead or self._clock.monotonic() - since >= STALE_S:
                mine = self._mine(holder.epoch + 1)
                if self._store.swap(PATH, mine.to_bytes(), etag):
                    log.warning("%s: took over from run %s, which is dead", self._store.uri, holder.holder)
                    return mine
                continue
            self._clock.wait(threading.Event(), LOOK_S)

    def _judge(self, holder: LeaseRecord) -> bool | None:
        """True: dead; False: alive; None: only time can tell."""
        if holder.boot_id and (holder.host, holder.boot_id) == (host(), boot_id()):
            return started(holder.pid) != holder.pid_started
        state = self._job_state(holder.ray_job) if holder.ray_job else None
        return None if state is None else state in ("STOPPED", "SUCCEEDED", "FAILED")

    def _mine(self, epoch: int) -> LeaseRecord:
        return LeaseRecord(
            holder=self._run, host=host(), boot_id=boot_id(), pid=self._pid, pid_started=self._pid_started,
            ray_job=job_id(), epoch=epoch, renewed=0,
        )  # fmt: skip

    def _parse(self, data: bytes) -> LeaseRecord:
        try:
            return LeaseRecord.model_validate_json(data)
        except ValidationError:
            raise InputError(
                f"output {self._store.uri}: {PATH} is not a lease that this version can read; "
                "if no run is using this ROOT, delete that file"
            ) from None

    def _held(self, holder: LeaseRecord) -> HeldError:
        job = f", Ray job {holder.ray_job}" if holder.ray_job else ""
        return HeldError(
            f"output {self._store.uri}: held by run {holder.holder} (host {holder.host}, pid {holder.pid}{job}); "
            "wait for it to end, or stop it"
        )


def _new_holder(current: tuple[bytes, str] | None) -> str:
    if current is None:
        return " (somebody removed lease.json)"
    try:
        return f" to run {LeaseRecord.model_validate_json(current[0]).holder}"
    except ValidationError:
        return " (lease.json is not ours any more)"


def ray_job_state(job: str) -> str | None:
    """The state of a submitted job in the Ray cluster this process is part of; None if it knows no such job."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return None
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        return str(JobSubmissionClient(address).get_job_status(job).value)
    except (RuntimeError, ConnectionError, ValueError, RayError):  # no such job; no dashboard, or not for us
        return None
