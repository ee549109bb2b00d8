"""A training run from its driver: data found, workers started on Ray, what they say heard, one run at a time in OUT."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.cluster import connect, shutdown
from pipeline.errors import InputError, StoreError
from pipeline.lease import Lease
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, open_store
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.dataset import find_dataset
from pipeline.train.index import SampleIndex, make_index
from pipeline.train.loop import Job, check_resume
from pipeline.train.model import source_of
from pipeline.train.nodes import wait_for_nodes
from pipeline.train.order import Order
from pipeline.train.record import METRICS
from pipeline.train.registry import register
from pipeline.train.settings import TrainSettings
from schemas.recipe import Recipe

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

GRACE_S = 60.0
"""Seconds that workers have for a last checkpoint once the run is told to stop."""


@dataclass(frozen=True)
class Request:
    data: Sequence[str]
    out: str
    settings: TrainSettings
    val: Sequence[str] = ()
    licences: Sequence[str] = ()
    command: Sequence[str] = ()


def run(request: Request) -> int:
    """Train, or go on, to the end of the budget. Returns 0 done, 1 stopped.

    Raises InputError (settings, data), HeldError (another run has OUT), StoreError, RuntimeError (workers lost).
    """
    if "://" in request.out:
        raise InputError(f"--out {request.out}: give a folder, of a disk that all workers share")
    store = open_store(request.out)
    store.check()
    source_of(request.settings)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    with Lease.acquire(store, name, on_lost=lambda: _leave(store.uri)):
        assert isinstance(store, LocalStore)
        store.clear_scratch()
        return _Run(request, store, name).go()


def _leave(root: str) -> None:
    log.error("pairmill train: %s: this run has lost its lease to another run, and stops", root)
    os._exit(1)


class _Run:
    def __init__(self, request: Request, store: LocalStore, name: str) -> None:
        self._request, self._store, self._name = request, store, name
        self._out = store.root
        self._stop = StopFlag(store.uri, name)
        self._stopping = False

    def go(self) -> int:
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, self._terminate)
        settings = self._request.settings
        index = make_index([find_dataset(place) for place in self._request.data], self._out)
        Order(index.sizes, settings.batch_size, settings.seed, settings.data_weights)
        val: SampleIndex | None = None
        if self._request.val:
            val = make_index([find_dataset(place) for place in self._request.val], self._out)
        job = Job(
            settings, str(self._out), str(index.folder), str(val.folder) if val else None,
            tuple(self._request.licences),
        )  # fmt: skip
        before = self._reached(index)
        self._say(index)
        for dataset in index.datasets:
            if dataset["root"]:
                register(dataset["root"], self._out, index.fingerprint)
        if before >= settings.steps:
            log.info("all %d steps are trained; the model is %s", before, self._out / "latest")
            return 0
        log.info(
            "%s samples in %d dataset%s; step %d of %d, %d samples each", f"{len(index):,}", len(index.sizes),
            "" if len(index.sizes) == 1 else "s", before, settings.steps, settings.batch_size,
        )  # fmt: skip
        self._train(job)
        reached = self._reached(index)
        if reached < settings.steps:
            log.info("stopped after step %d of %d; the same command goes on from there", reached, settings.steps)
            return 1
        log.info("trained %d steps; the model is %s", reached, self._out / "latest")
        return 0

    def _reached(self, index: SampleIndex) -> int:
        """The step of the newest checkpoint, which has to be of this run."""
        newest = Checkpoints(self._out, 1).newest()
        if newest is None:
            return 0
        check_resume(newest[1], self._request.settings, index, self._out)
        return int(newest[1]["step"])

    def _say(self, index: SampleIndex) -> None:
        """run.json: what this run is, and how it was last started."""
        about = {
            "run": self._name, "command": list(self._request.command), "settings": self._request.settings.model_dump(),
            "fingerprint": index.fingerprint, "datasets": index.datasets, "sizes": index.sizes,
            "identity": self._request.settings.fingerprint(),
        }  # fmt: skip
        self._store.replace("run.json", json.dumps(about, indent=1).encode() + b"\n")

    def _train(self, job: Job) -> None:
        connect(Recipe())
        failed: list[BaseException] = []

        def fit() -> None:
            try:
                _fit(job, self._name, self._stop)
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
                failed.append(error)

        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        told, said_at = 0, time.monotonic()
        while thread.is_alive():
            thread.join(0.5)
            if time.monotonic() - said_at > 10 and (line := _last_line(self._out / METRICS)) and line["step"] > told:
                told, said_at = line["step"], time.monotonic()
                log.info(
                    "step %d of %d  loss %.4f  accuracy %.3f  %.0f samples/s  data wait %.1f%%", told,
                    job.settings.steps, line["loss"], line["accuracy"], line["samples_per_s"],
                    100 * line["data_wait_s"] / line["step_s"],
                )  # fmt: skip
        shutdown()
        self._stop.lower()
        shutil.rmtree(self._out / ".ray" / self._name, ignore_errors=True)
        _raise_told(self._out, self._name)
        if failed:
            raise RuntimeError(f"training failed: {_cause(failed[0])}")

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: checkpoint after the step under way."""
        if not self._stopping:
            self._stopping = True
            log.info("stopping; workers have %.0f s for a last checkpoint", GRACE_S)
            threading.Thread(target=self._stop.raise_flag, daemon=True).start()
            timer = threading.Timer(GRACE_S, os._exit, (1,))
            timer.daemon = True
            timer.start()


def _fit(job: Job, name: str, stop: StopFlag) -> None:
    import ray

    settings = job.settings
    gpus = bool(ray.cluster_resources().get("GPU")) if settings.gpus is None else settings.gpus
    kind = "GPU" if gpus else "CPU"
    have = wait_for_nodes(kind, settings.workers, settings.wait_minutes, stop)
    if stop.is_set():
        return
    if have < settings.workers:
        _tell(Path(job.out), name, InputError(
            f"workers {settings.workers}: the cluster has {have:g} {kind}s; lower it, or add nodes"
        ))  # fmt: skip
        return
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "run": name, "stop": stop, "gpus": gpus},
        scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=gpus),
        run_config=RunConfig(
            name=name, storage_path=str(Path(job.out) / ".ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
    )  # fmt: skip
    trainer.fit()


def _worker(told: dict[str, Any]) -> None:
    """One worker of Ray Train. An error that another try would meet again is told to the driver, once."""
    import ray.train
    import torch

    from pipeline.train.loop import train

    job: Job = told["job"]
    out = Path(job.out)
    if _told(out, told["run"]).exists():  # Ray has started us again after it
        return
    if not job.settings.threads:
        beside = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // beside))
    device = f"cuda:{torch.cuda.current_device()}" if told["gpus"] else "cpu"
    try:
        train(job, told["stop"].is_set, device)
    except (InputError, StoreError) as error:
        _tell(out, told["run"], error)
        raise
    except OSError as error:
        if error.errno in _FULL:
            full = StoreError(f"{out}: {error.strerror}; make room and run the same command again")
            _tell(out, told["run"], full)
        raise


def _told(out: Path, name: str) -> Path:
    return out / "runs" / f"{name}.error.json"


def _tell(out: Path, name: str, error: Exception) -> None:
    path = _told(out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # it has been told, or the disk is full: Ray's own error will do
        temporary.write_text(json.dumps({"kind": type(error).__name__, "said": str(error)}))
        os.link(temporary, path)
    temporary.unlink(missing_ok=True)


def _raise_told(out: Path, name: str) -> None:
    path = _told(out, name)
    if not path.exists():
        return
    told = json.loads(path.read_text())
    path.unlink()
    raise (InputError if told["kind"] == "InputError" else StoreError)(told["said"])


def _cause(error: BaseException) -> str:
    """The last line of what a worker raised, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else error
    lines = [line for line in str(inner).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = [line for line in file.read().split(b"\n")[:-1] if line]
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    except (OSError, ValueError, IndexError):
        return None
