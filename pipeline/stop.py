"""Stopping in good order: one flag that the driver raises and every worker sees, through the store."""

import threading
import time

from pipeline.storage import open_store


class StopFlag:
    """Raised by writing runs/<run>.stop; workers look at most once in two seconds."""

    def __init__(self, root: str, run: str) -> None:
        self._root = root
        self._path = f"runs/{run}.stop"
        self._raised = threading.Event()
        self._looked = 0.0

    def __reduce__(self) -> tuple[type["StopFlag"], tuple[str, str]]:
        return StopFlag, (self._root, self._path.removeprefix("runs/").removesuffix(".stop"))

    def raise_flag(self) -> None:
        """Ask workers to take no new unit; safe to call twice."""
        self._raised.set()
        open_store(self._root).replace(self._path, b"stop\n")

    def lower(self) -> None:
        open_store(self._root).delete(self._path)

    def is_set(self) -> bool:
        if not self._raised.is_set() and time.monotonic() - self._looked > 2.0:
            self._looked = time.monotonic()
            if open_store(self._root).size(self._path) is not None:
                self._raised.set()
        return self._raised.is_set()
