"""Checkpoints: whole or not there, the last few kept, verified before they are used.

OUT/checkpoints/<step>/ is open_clip's folder and beside it `state.pt` (optimiser) and `checkpoint.json`, written last:
step, identity of the run, and the bytes and sha256 of every file. It is made under another name, every file and the
folder itself are on disk, and then it is renamed.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import StoreError
from pipeline.faults import fault_point

log = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
STATE = "state.pt"
LATEST = "latest"


class Checkpoints:
    """Of one run, in OUT/checkpoints; written by one thread while training goes on. Close it."""

    def __init__(self, out: Path, keep: int) -> None:
        self.folder = out / "checkpoints"
        self._out, self._keep = out, keep
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def begin(self) -> None:
        """Clear what killed writers left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)

    def steps(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest that is whole, and its manifest; broken ones are named in the log."""
        for step in reversed(self.steps()):
            folder = self.folder / _name(step)
            if (broken := why_broken(folder)) is None:
                return folder, json.loads((folder / MANIFEST).read_text())
            log.warning("train: checkpoint %s is broken (%s); looking at the one before", folder, broken)
        return None

    def save(self, step: int, write: Callable[[Path], dict[str, Any]]) -> None:
        """Have `write(folder)` fill a new checkpoint, in the background; it returns what the manifest adds.

        What `write` uses must not change any more. Raises StoreError where the last one could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._save, step, write)

    def check(self) -> None:
        """Raise StoreError if the last one could not be written; does not wait for one under way."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until the last one is on disk. Raises StoreError where it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _save(self, step: int, write: Callable[[Path], dict[str, Any]]) -> None:
        temporary = self.folder / f".{_name(step)}-{uuid.uuid4().hex}"
        target = self.folder / _name(step)
        try:
            temporary.mkdir(parents=True)
            added = write(temporary)
            fault_point("checkpoint-written")
            files = {path.name: _measure(path) for path in sorted(temporary.iterdir())}
            manifest = {"step": step, **added, "files": files}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            for path in temporary.iterdir():
                _fsync(path)
            _fsync(temporary)
            fault_point("checkpoint-rename")
            if target.exists():  # broken, or this step again
                target.rename(self.folder / f".{_name(step)}-{uuid.uuid4().hex}")
            temporary.rename(target)
            _fsync(self.folder)
        except Exception as error:
            if not isinstance(error, OSError | RuntimeError):
                raise
            # torch wraps what the disk says in a RuntimeError.
            kept = [path for path in self.steps() if path != step]
            last = f"the checkpoint of step {kept[-1]} is intact" if kept else "there is none before it"
            raise StoreError(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({_why(error)}); {last}; make room "
                "and run the same command again"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._point(target)
        fault_point("checkpoint-done")
        for old in self.steps()[: -self._keep]:
            gone = self.folder / f".{_name(old)}-{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                (self.folder / _name(old)).rename(gone)
        for left in self.folder.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)

    def _point(self, target: Path) -> None:
        """OUT/latest → the newest checkpoint."""
        link = self._out / f".{LATEST}-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            link.symlink_to(target.relative_to(self._out))
            link.rename(self._out / LATEST)


def why_broken(folder: Path) -> str | None:
    """None where the checkpoint holds what its manifest says, byte for byte."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, said in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _measure(path) != said:
            return f"{name} is not what was written"
    return None


def save_state(path: Path, state: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def copied(value: Any, into: Any = None) -> Any:
    """State with its tensors copied to memory of their own on the CPU: that of `into`, an earlier copy, where it fits.

    New memory has to be cleared before it can be written to; that of an earlier copy has not.
    """
    if isinstance(value, torch.Tensor):
        if isinstance(into, torch.Tensor) and (into.shape, into.dtype) == (value.shape, value.dtype):
            return into.copy_(value.detach())
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        held = into if isinstance(into, dict) else {}
        return {key: copied(inner, held.get(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _name(step: int) -> str:
    return f"{step:010d}"


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0][:200]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
