"""A worker's part of every global batch, decoded ahead by its own processes.

The batch of a step is cut into equal runs, one a worker, so that the samples of a step and their order are the same
under any number of workers; where the batch cannot be cut evenly, the last workers' rows end in absent ones.
"""

import logging
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.child import ChildProcess
from pipeline.embed.ring import UNDER_WAY, WAITING, Ring, Shape
from pipeline.encoders.preprocess import Preprocess
from pipeline.encoders.tokens import Tokenizer
from pipeline.errors import StoreError
from pipeline.train.index import SampleIndex

log = logging.getLogger(__name__)

TASK_ROWS: Final = 32
AHEAD: Final = 2
"""Tasks a process holds: one is in its pipe while one is decoded."""
MAX_DEATHS: Final = 3
"""Deaths in a row with no image under way, after which it is not the images."""
STALL_SECONDS: Final = 600.0
"""Without a batch for so long, the store or the disk is not answering."""


@dataclass(frozen=True)
class Input:
    """What an encoder makes of a sample, without its towers."""

    preprocess: Preprocess
    tokenize: Tokenizer
    random_crop: bool
    seed: int


@dataclass
class Batch:
    """A worker's rows of one step, b of them. Absent rows (not decoded, or padding) have zeros and weigh nothing."""

    step: int
    images: NDArray[np.uint8]
    """[b, rows, columns, 3]; valid until the next batch is asked for."""
    tokens: NDArray[np.int64]
    """[b, context]"""
    weights: NDArray[np.float32]
    present: NDArray[np.bool_]
    failed: list[tuple[int, str, str]]
    """(sample, reason, detail)"""
    waited: float = 0.0
    """Seconds that training had to wait for it."""
    spent: float = 0.0
    """CPU seconds of decoding it."""


@dataclass
class _Work:
    """A batch in the making."""

    batch: Batch
    samples: NDArray[np.int64]
    first: int
    """Slot of its first row."""
    left: int
    ready: "Future[Batch]" = field(default_factory=Future)


@dataclass(frozen=True)
class _Task:
    work: _Work
    rows: list[int]


class Batches(Protocol):
    """Which samples a global batch holds, in order."""

    @property
    def batch(self) -> int: ...
    def samples(self, step: int) -> NDArray[np.int64]: ...


class Loader:
    """Yields a worker's batches from step `first` to before `last`. Close it."""

    def __init__(
        self, index: SampleIndex, order: Batches, made: Input, rank: int, world: int, first: int, last: int,
        decoders: int, prefetch: int, use_weights: bool,
    ) -> None:  # fmt: skip
        self._index, self._order, self._made = index, order, made
        self._rank, self._world, self._use_weights = rank, world, use_weights
        self._next, self._last = first, last
        self._rows = -(-order.batch // world)
        rows, columns = made.preprocess.size
        self._ring = Ring(Shape(prefetch + 1, self._rows, rows, columns))
        self._tasks: queue.Queue[_Task | None] = queue.Queue()
        self._under_way: deque[_Work] = deque()
        self._lock = threading.Lock()
        self._buffers = deque(range(prefetch + 1))
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(decoders)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the processes; what was decoded ahead is lost."""
        with self._lock:
            while not self._tasks.empty():
                self._tasks.get_nowait()
        self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._ring.close()

    def __iter__(self) -> Iterator[Batch]:
        used: int | None = None
        while self._under_way or self._next < self._last:
            if used is not None:
                self._buffers.append(used)
                used = None
            # One buffer stays with the batch that is trained on.
            while self._next < self._last and len(self._buffers) > (1 if self._under_way else 0):
                self._submit(self._next, self._buffers.popleft())
                self._next += 1
            work = self._under_way.popleft()
            start = time.perf_counter()
            try:
                batch = work.ready.result(STALL_SECONDS)
            except TimeoutError:
                raise StoreError(
                    f"no batch was decoded for {STALL_SECONDS:.0f} s (step {work.batch.step}): the store of the images "
                    "does not answer"
                ) from None
            batch.waited = time.perf_counter() - start
            used = work.first // self._rows
            yield batch

    def _submit(self, step: int, buffer: int) -> None:
        b, first = self._rows, self._rank * self._rows
        samples = self._order.samples(step)[first : first + b]
        count = len(samples)
        slot = buffer * b
        images = self._ring.pixels[buffer]
        images[count:] = 0
        weights = np.zeros(b, np.float32)
        weights[:count] = self._index.weight[samples] if self._use_weights else 1.0
        tokens = np.tile(self._made.tokenize([""]), (b, 1))
        batch = Batch(step, images, tokens, weights, np.arange(b) < count, [])
        self._ring.status[slot : slot + b] = WAITING
        starts = range(0, count, TASK_ROWS)
        work = _Work(batch, samples, slot, len(starts))
        self._under_way.append(work)
        if not count:
            work.ready.set_result(batch)
        for start in starts:
            self._tasks.put(_Task(work, list(range(start, min(start + TASK_ROWS, count)))))

    def _message(self, task: _Task) -> dict[str, Any]:
        work = task.work
        base = work.batch.step * self._order.batch + self._rank * self._rows
        return {
            "slots": [work.first + row for row in task.rows],
            "samples": [int(work.samples[row]) for row in task.rows],
            "positions": [base + row for row in task.rows],
        }

    def _serve(self) -> None:
        """Keep one process supplied until there is no more to do."""
        held: deque[_Task] = deque()
        child: ChildProcess | None = None
        deaths = 0
        while True:
            more = self._more(AHEAD - len(held), wait=not held)
            held.extend(more)
            if not held:
                break
            try:
                if child is None:
                    child = self._start()
                for task in more:
                    child.send(self._message(task))
                reply, tokens = child.receive()
                self._answer(held.popleft(), reply, tokens)
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

    def _start(self) -> ChildProcess:
        made = self._made
        first = {"index": str(self._index.folder), "fd": self._ring.fd, "ring": self._ring.shape.to_json()}
        data = pickle.dumps((made.preprocess, made.tokenize, made.random_crop, made.seed))
        child = ChildProcess("pipeline.train.decode_process", first, data, [self._ring.fd])
        try:
            child.receive()
        except (OSError, EOFError, ValueError):
            child.end()
            raise
        return child

    def _more(self, room: int, wait: bool) -> list[_Task]:
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

    def _answer(self, task: _Task, reply: dict[str, Any], tokens: bytes) -> None:
        work, rows = task.work, task.rows
        if "error" in reply:
            with self._lock:
                if not work.ready.done():
                    work.ready.set_exception(StoreError(f"train: images cannot be read: {reply['error']}"))
            return
        failed = {int(slot) - work.first: (why[0], why[1]) for slot, why in reply["failed"].items()}
        with self._lock:
            work.batch.tokens[rows] = np.frombuffer(tokens, np.int64).reshape(len(rows), -1)
            work.batch.spent += reply["cpu"]
        self._ended(work, failed)

    def _ended(self, work: _Work, failed: dict[int, tuple[str, str]]) -> None:
        with self._lock:
            for row, (reason, detail) in failed.items():
                self._absent(work, row, reason, detail)
            work.left -= 1
            last = work.left == 0
        if last and not work.ready.done():
            work.batch.failed.sort()
            work.ready.set_result(work.batch)

    def _absent(self, work: _Work, row: int, reason: str, detail: str) -> None:
        work.batch.present[row] = False
        work.batch.weights[row] = 0
        work.batch.images[row] = 0
        work.batch.failed.append((int(work.samples[row]), reason, detail))

    def _bury(self, held: "deque[_Task]", how: str) -> bool:
        """After a death: blame the images that were under way, hand the others out again; True where one was."""
        blamed = False
        for task in held:
            status = self._ring.status[[task.work.first + row for row in task.rows]].tolist()
            guilty = [row for row, state in zip(task.rows, status, strict=True) if state == UNDER_WAY]
            blamed = blamed or bool(guilty)
            with self._lock:
                for row in guilty:
                    log.warning("train: an image ended its decode process (%s)", how)
                    self._absent(task.work, row, "decoder_crash", how)
            # Those done or failed are asked again too: their tokens and reasons went with the process.
            again = [row for row in task.rows if row not in guilty]
            self._ring.status[[task.work.first + row for row in again]] = WAITING
            if again:
                self._tasks.put(_Task(task.work, again))
            else:
                self._ended(task.work, {})
        return blamed

    def _give_up(self, why: str) -> None:
        with self._lock:
            waiting = [work for work in self._under_way if not work.ready.done()]
        for work in waiting:
            work.ready.set_exception(StoreError(f"train: {why}"))
        self._tasks.put(None)


def failed_line(index: SampleIndex, sample: int, reason: str, detail: str, step: int) -> dict[str, Any]:
    """A line of OUT/failed.jsonl."""
    uri, path = index.files[int(index.file[sample])]
    return {
        "step": step, "uid": index.uid_of(sample), "file": f"{uri}/{path}", "offset": int(index.offset[sample]),
        "reason": reason, "detail": detail,
    }  # fmt: skip
