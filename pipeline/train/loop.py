"""A worker's training: from the newest checkpoint to the last step, or until it is told to stop."""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.faults import fault_point
from pipeline.train.checkpoint import STATE, Checkpoints, copied, load_state, save_state
from pipeline.train.data import Batch, Input, Loader, failed_line
from pipeline.train.evaluation import Recall
from pipeline.train.export import WEIGHTS, write_card, write_model
from pipeline.train.index import SampleIndex
from pipeline.train.ledger import FAILED, LEDGER, ledger
from pipeline.train.model import make_towers, tokenizer_paths
from pipeline.train.optimiser import learning_rate, make_optimiser
from pipeline.train.order import Order, mix
from pipeline.train.record import Record
from pipeline.train.settings import TrainSettings
from pipeline.train.step import Rows, clip, gradients, hold_temperature
from pipeline.train.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told; the index is made before."""

    settings: TrainSettings
    out: str
    index: str
    val_index: str | None = None
    licences: tuple[str, ...] = ()


def check_resume(found: dict[str, Any], settings: TrainSettings, index: SampleIndex, out: Path) -> None:
    """Raises InputError where the manifest of a checkpoint is of another run than these settings and data make."""
    for name, value in settings.identity().items():
        if (before := found["identity"].get(name)) != value:
            raise InputError(
                f"{out}: its checkpoints were trained with {name}={before}, not {value}; give that, or another --out"
            )
    if found["fingerprint"] != index.fingerprint:
        raise InputError(
            f"{out}: its checkpoints were trained on other data ({found['fingerprint'][:16]}, now "
            f"{index.fingerprint[:16]}); give the same --data, or another --out"
        )


def train(job: Job, stop: Callable[[], bool] = lambda: False, device: str = "cpu") -> int:
    """Train to the end of the budget; returns the step reached, which is less where `stop` said so.

    Raises InputError (settings, data that cannot be trained on), StoreError (a disk or store).
    """
    worker = _Worker(job, device)
    try:
        return worker.run(stop)
    finally:
        worker.close()


class _Worker:
    def __init__(self, job: Job, device: str) -> None:
        settings = job.settings
        self._job, self._settings, self._device = job, settings, torch.device(device)
        self._world = World.joined()
        self._out = Path(job.out)
        self._index = SampleIndex(Path(job.index))
        self._order = Order(self._index.sizes, settings.batch_size, settings.seed, settings.data_weights)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._towers = make_towers(settings, device)
        self._optimiser = make_optimiser(self._towers.model, settings)
        self._checkpoints = Checkpoints(self._out, settings.keep)
        self._seen_failed = 0
        self._step = 0
        self._resume()
        first = self._world.rank == 0
        self._record = Record(self._out, self._step) if first else None
        made = Input(self._towers.preprocess, self._towers.tokenize, settings.crop == "random", settings.seed)
        self._loader = Loader(
            self._index, self._order, made, self._world.rank, self._world.size, self._step, settings.steps,
            settings.decoders, settings.prefetch, settings.sample_weights,
        )  # fmt: skip
        self._recall: Recall | None = None
        if job.val_index:
            self._recall = Recall(SampleIndex(Path(job.val_index)), self._towers, settings)
        self._saved_at = time.monotonic()
        self._last: dict[str, float] = {}
        self._copy: dict[str, Any] = {}

    def close(self) -> None:
        self._loader.close()
        self._checkpoints.close()
        if self._record:
            self._record.close()

    def run(self, stop: Callable[[], bool]) -> int:
        self._towers.train()
        began = time.perf_counter()
        for batch in self._loader:
            failed = [failed_line(self._index, *one, batch.step + 1) for one in batch.failed]
            stopping = self._train(batch, failed, stop, began)
            began = time.perf_counter()
            if stopping:
                break
        self._checkpoints.wait()
        return self._step

    def _train(self, batch: Batch, failed: list[dict[str, Any]], stop: Callable[[], bool], began: float) -> bool:
        """One step; True where it is to be the last for now."""
        settings, model, world = self._settings, self._towers.model, self._world
        # Whatever a step draws follows from the run's seed and the step: no generator has to be kept.
        torch.manual_seed(mix(settings.seed, 0x57E9, batch.step, world.rank) >> 1)
        loss, correct = gradients(
            self._towers, self._rows(batch), settings.loss, settings.accumulate, settings.precision == "bf16", world
        )
        norm = clip(model, settings.clip_norm)
        first = world.rank == 0
        wants_save = first and self._due(batch.step + 1)
        wants_stop = first and stop()
        sums = world.sum([
            float(loss), float(correct), float(batch.present.sum()), len(failed), batch.waited, batch.spent,
            wants_save, wants_stop,
        ])  # fmt: skip
        total, hits, present, bad, waited, spent, save, stopping = sums
        if not (total == total and abs(total) != float("inf")):
            raise InputError(
                f"the loss is {total} at step {batch.step + 1}; lower lr ({settings.lr:g}) or warm up longer; the "
                "checkpoints before are as they were"
            )
        rate = learning_rate(settings, batch.step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        hold_temperature(model)
        self._step = batch.step + 1
        everybody = world.gather_objects(failed) if bad else []
        took = time.perf_counter() - began
        self._last = {
            "step": self._step, "samples": self._step * settings.batch_size, "loss": total,
            "accuracy": hits / max(1.0, present), "temperature": float(model.logit_scale.detach().exp()), "lr": rate,
            "norm": norm, "failed": bad, "samples_per_s": settings.batch_size / took, "step_s": took,
            "data_wait_s": waited / world.size, "decode_cpu_s": spent,
        }  # fmt: skip
        if self._recall and self._evaluates(settings):
            self._last |= self._recall.measure(world)
            self._towers.train()
        self._heed(bad, everybody)
        done = self._step == settings.steps
        if first:
            assert self._record is not None
            self._record.step(self._last, everybody)
            self._checkpoints.check()
            if save or stopping or done:
                self._save()
        fault_point("step", str(self._step), f"{world.rank}/{self._step}")
        return bool(stopping)

    def _evaluates(self, settings: TrainSettings) -> bool:
        every = settings.evaluate_steps
        return self._step == settings.steps or (every is not None and self._step % every == 0)

    def _rows(self, batch: Batch) -> Rows:
        def moved(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).to(self._device, non_blocking=True)

        return Rows(moved(batch.images), moved(batch.tokens), moved(batch.weights), moved(batch.present))

    def _heed(self, bad: float, failed: list[dict[str, Any]]) -> None:
        """Raise InputError where more of the data cannot be used than the run may lose."""
        self._seen_failed += int(bad)
        seen = self._step * self._settings.batch_size
        if bad and self._seen_failed > max(self._settings.max_bad * max(seen, 1_000), 0):
            one = failed[0]
            raise InputError(
                f"{self._seen_failed:,} of {seen:,} samples cannot be used, more than max_bad "
                f"{self._settings.max_bad:g}; such as {one['uid']} in {one['file']}: {one['reason']}, {one['detail']}"
            )

    def _due(self, step: int) -> bool:
        if (every := self._settings.checkpoint_steps) is not None:
            return step % every == 0
        return time.monotonic() - self._saved_at >= 60 * self._settings.checkpoint_minutes

    def _resume(self) -> None:
        if self._world.rank == 0:
            self._checkpoints.begin()
        self._world.barrier()
        newest = self._checkpoints.newest() if self._world.rank == 0 else None
        newest = self._world.gather_objects([newest])[0]
        if newest is None:
            return
        from safetensors.torch import load_file

        folder, manifest = newest
        check_resume(manifest, self._settings, self._index, self._out)
        model = self._towers.model
        model.load_state_dict(load_file(folder / WEIGHTS))
        state = load_state(folder / STATE)
        self._optimiser.load_state_dict(state["optimiser"])
        self._step, self._seen_failed = manifest["step"], manifest["failed"]
        if self._world.rank == 0:
            log.info("train: goes on after step %d of %d", self._step, self._settings.steps)

    def _save(self) -> None:
        assert self._record is not None
        job, settings, step = self._job, self._settings, self._step
        self._checkpoints.wait()  # it writes from the copy that is overwritten here
        state = {"weights": self._towers.model.state_dict(), "optimiser": self._optimiser.state_dict()}
        self._copy = copied(state, self._copy)
        weights, optimiser = self._copy["weights"], self._copy["optimiser"]
        failed_bytes, failed, metrics = self._record.failed_bytes(), self._seen_failed, dict(self._last)
        self._saved_at = time.monotonic()

        def write(folder: Path) -> dict[str, Any]:
            towers, index = self._towers, self._index
            sha256 = write_model(folder, weights, towers.config, towers.preprocess, tokenizer_paths(towers))
            save_state(folder / STATE, {"optimiser": optimiser})
            where = os.path.relpath(index.folder.resolve(), self._checkpoints.folder.resolve() / "any")
            own = ledger(index, settings.model_dump(mode="json"), step, where)
            (folder / LEDGER).write_text(json.dumps(own, indent=1) + "\n")
            with (self._out / FAILED).open("rb") as file:
                (folder / FAILED).write_bytes(file.read(failed_bytes))
            card = {
                "settings": settings.model_dump(mode="json"), "step": step, "steps": settings.steps,
                "samples_seen": step * settings.batch_size, "weights_sha256": sha256, "fingerprint": index.fingerprint,
                "failed": failed, "metrics": metrics, "data": self._data(step, job.licences),
            }  # fmt: skip
            write_card(folder, card)
            return {
                "identity": settings.identity(), "fingerprint": index.fingerprint, "weights_sha256": sha256,
                "failed": failed, "metrics": metrics,
            }  # fmt: skip

        self._checkpoints.save(step, write)

    def _data(self, step: int, licences: tuple[str, ...]) -> list[dict[str, Any]]:
        index, epochs = self._index, self._order.epochs(step)
        return [
            {**dataset, "samples": index.sizes[place], "fingerprint": index.fingerprints[place],
             "seen": epochs[place if len(epochs) > 1 else 0],
             "licences": licences[place] if place < len(licences) else ""}
            for place, dataset in enumerate(index.datasets)
        ]  # fmt: skip
