"""A run's numbers: metrics.jsonl, a line a step; failed.jsonl, a line a sample left out; TensorBoard's events.

Written by one worker. A run that resumes from step s takes back the lines of later steps first.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.train.events import EventFile
from pipeline.train.ledger import FAILED

METRICS = "metrics.jsonl"


class Record:
    """Close it."""

    def __init__(self, out: Path, step: int) -> None:
        """Lines of steps after `step` are taken back; a line that a kill cut short goes as well."""
        for name in (METRICS, FAILED):
            _rewind(out / name, step)
        self._metrics = (out / METRICS).open("a")
        self._failed = (out / FAILED).open("a")
        self._events = EventFile(out / "tensorboard")

    def step(self, metrics: Mapping[str, float], failed: Iterable[dict[str, Any]]) -> None:
        self._metrics.write(json.dumps(metrics) + "\n")
        self._metrics.flush()
        for line in failed:
            self._failed.write(json.dumps(line) + "\n")
        self._failed.flush()
        self._events.scalars(int(metrics["step"]), {name: metrics[name] for name in metrics if name != "step"})

    def failed_bytes(self) -> int:
        """The length of failed.jsonl now."""
        return self._failed.tell()

    def close(self) -> None:
        for file in (self._metrics, self._failed):
            file.close()
        self._events.close()


def _rewind(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
