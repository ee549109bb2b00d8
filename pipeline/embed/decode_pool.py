"""Decode processes of one encoder's process: batches of pool members in, pixels in the ring out.

A thread a process keeps it supplied. Where a process dies, the image it had under way is a decoder_crash and all
others of its tasks go to another process.
"""

import logging
import pickle
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.embed.child import ChildProcess
from pipeline.embed.ring import FAILED, UNDER_WAY, WAITING, Ring
from pipeline.encoders.preprocess import Preprocess
from pipeline.errors import StoreError
from pipeline.shard.pool import PoolMismatchError

log = logging.getLogger(__name__)

TASK_ROWS: Final = 32
"""Images a task: 50 ms of decoding, so that a batch keeps many processes busy and a task's frame costs nothing."""
AHEAD: Final = 2
"""Tasks a process holds: one is read while one is decoded."""
MAX_DEATHS: Final = 3
"""Deaths in a row with no image under way, after which it is not the images."""

COLUMNS: Final = ("uid", "pool_file", "pool_offset", "pool_size", "pool_sha256")

Failures = dict[int, tuple[str, str]]
"""place in the batch → (reason, detail)"""


@dataclass
class _Batch:
    first: int
    """Slot of its first image."""
    tasks: int
    """Those not ended yet."""
    ready: "Future[Failures]" = field(default_factory=Future)
    failed: Failures = field(default_factory=dict)
    error: Exception | None = None


@dataclass(frozen=True)
class _Task:
    batch: _Batch
    slots: list[int]
    columns: dict[str, list[Any]]


class DecodePool:
    """`processes` of them; safe to use from several threads. Close it.

    `spent`: CPU seconds of the processes, for `read` and for `decode`.
    """

    def __init__(
        self, root: str, preprocess: Preprocess, scaled: bool, ring: Ring, processes: int,
        beside: Sequence[tuple[Preprocess, Ring]] = (),
    ) -> None:  # fmt: skip
        """`beside`: other models' inputs of the same images, and rings of as many slots that they go to."""
        self._ring = ring
        rings = [ring, *(other for _, other in beside)]
        self._fds = [one.fd for one in rings]
        self._first = {
            "root": root, "scaled": scaled, "fds": self._fds, "rings": [one.shape.to_json() for one in rings]
        }  # fmt: skip
        self._preprocesses = pickle.dumps([preprocess, *(other for other, _ in beside)])
        self._tasks: queue.Queue[_Task | None] = queue.Queue()
        self._lock = threading.Lock()
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(processes)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the processes, once they have done what they were given."""
        self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def decode(self, buffer: int, members: pa.Table) -> "Future[Failures]":
        """Have the members (COLUMNS, at most a batch) decoded into a buffer of the ring, in their order.

        The answer names those that failed, whose pixels are zero; or it raises PoolMismatchError or StoreError. The
        buffer is in use until then.
        """
        first = buffer * self._ring.shape.batch
        self._ring.status[first : first + members.num_rows] = WAITING
        columns = {name: members[name].to_pylist() for name in COLUMNS}
        starts = range(0, members.num_rows, TASK_ROWS)
        batch = _Batch(first, len(starts))
        for start in starts:
            slots = list(range(first + start, first + min(start + TASK_ROWS, members.num_rows)))
            part = {name: values[start : start + TASK_ROWS] for name, values in columns.items()}
            self._tasks.put(_Task(batch, slots, part))
        return batch.ready

    def _serve(self) -> None:
        """Keep one process supplied until there is no more to do."""
        held: deque[_Task] = deque()
        child, deaths = self._started(), 0
        while True:
            more = self._more(AHEAD - len(held), wait=not held)
            held.extend(more)
            if not held:
                break
            try:
                child = child or self._start()
                for task in more:
                    child.send({"slots": task.slots, **task.columns})
                reply, _ = child.receive()
                self._answer(held.popleft(), reply)
                deaths = 0
            except (OSError, EOFError, ValueError):
                how = child.end() if child else "it does not start"
                deaths = 0 if self._bury(held, how) else deaths + 1
                if deaths >= MAX_DEATHS:
                    self._give_up(f"a decode process died {deaths} times with no image under way: {how}")
                held.clear()
                child = None
        if child:
            child.end()

    def _more(self, room: int, wait: bool) -> list[_Task]:
        """Up to `room` tasks; none where there is no more to come, or none now and we need not `wait`."""
        found: list[_Task] = []
        while len(found) < room:
            try:
                task = self._tasks.get(block=wait and not found)
            except queue.Empty:
                break
            if task is None:
                self._tasks.put(None)  # the others shall see it too
                break
            found.append(task)
        return found

    def _started(self) -> ChildProcess | None:
        """A process, before there is work for it; None where it died, which work will show again."""
        try:
            return self._start()
        except (OSError, EOFError, ValueError):
            return None

    def _start(self) -> ChildProcess:
        child = ChildProcess("pipeline.embed.decode_process", self._first, self._preprocesses, self._fds)
        try:
            child.receive()
        except (OSError, EOFError, ValueError):
            child.end()
            raise
        return child

    def _answer(self, task: _Task, reply: dict[str, Any]) -> None:
        failed = {int(slot) - task.batch.first: (why[0], why[1]) for slot, why in reply.get("failed", {}).items()}
        error: Exception | None = None
        if "error" in reply:
            kind = PoolMismatchError if reply["kind"] == PoolMismatchError.__name__ else StoreError
            error = kind(reply["error"])
        with self._lock:
            for part in ("read", "decode"):
                self.spent[part] += reply.get(part, 0.0)
        self._ended(task.batch, failed, error)

    def _ended(self, batch: _Batch, failed: Failures, error: Exception | None = None) -> None:
        """A task has ended; with the last one of its batch, the batch has."""
        with self._lock:
            batch.failed.update(failed)
            batch.error = batch.error or error
            batch.tasks -= 1
            last = batch.tasks == 0
        if last and batch.error is not None:
            batch.ready.set_exception(batch.error)
        elif last:
            batch.ready.set_result(batch.failed)

    def _bury(self, held: deque[_Task], how: str) -> bool:
        """After a death: blame the images that were under way, hand the others out again; True where one was."""
        blamed = False
        for task in held:
            status = self._ring.status[task.slots]
            failed: Failures = {}
            for slot in np.asarray(task.slots)[status == UNDER_WAY].tolist():
                self._ring.pixels.reshape(-1, *self._ring.pixels.shape[2:])[slot] = 0
                failed[slot - task.batch.first] = ("decoder_crash", how)
                log.warning("embed: an image ended its decode process (%s)", how)
            blamed = blamed or bool(failed)
            # Those that FAILED are asked again too: their reasons went with the process.
            again = [place for place, state in enumerate(status.tolist()) if state in (WAITING, FAILED)]
            if again:
                with self._lock:
                    task.batch.failed.update(failed)
                columns = {name: [values[place] for place in again] for name, values in task.columns.items()}
                self._tasks.put(_Task(task.batch, [task.slots[place] for place in again], columns))
            else:
                self._ended(task.batch, failed)
        return blamed

    def _give_up(self, why: str) -> None:
        """What is waiting fails: no process can be had for it."""
        for task in self._more(self._tasks.qsize(), wait=False):
            self._ended(task.batch, {}, StoreError(f"embed: {why}"))
