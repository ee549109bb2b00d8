"""Tokens of captions, made by processes of their own: a tokenizer holds the interpreter, the towers' loop needs it."""

import contextlib
import os
import pickle
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.child import ChildProcess, frames_of_parent
from pipeline.errors import StoreError
from pipeline.frames import receive, send
from pipeline.start import start_lean

TASK_TEXTS: Final = 256
MAX_DEATHS: Final = 3

Tokens = NDArray[np.int64]
"""[texts, context]"""
Tokenizer = Callable[[list[str]], Tokens]

_Task = tuple[list[str], "Future[Tokens]"]


class TokenPool:
    """`processes` of them; safe to use from several threads. Close it.

    `tokenizer` is called in each process and gives what tokenises; it is pickled. `spent`: CPU seconds, for `tokens`.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], processes: int = 1) -> None:
        self._tokenizer = pickle.dumps(tokenizer)
        self._tasks: queue.Queue[_Task | None] = queue.Queue()
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(processes)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the processes, once they have done what they were given."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def tokenise(self, texts: Sequence[str]) -> "list[Future[Tokens]]":
        """Tokens of TASK_TEXTS texts each, in their order. An answer may raise StoreError."""
        parts = [list(texts[start : start + TASK_TEXTS]) for start in range(0, len(texts), TASK_TEXTS)]
        tasks: list[_Task] = [(part, Future()) for part in parts]
        for task in tasks:
            self._tasks.put(task)
        return [future for _, future in tasks]

    def _serve(self) -> None:
        child = ChildProcess("pipeline.embed.token_process", {}, self._tokenizer)
        while (task := self._tasks.get()) is not None:
            texts, future = task
            for death in range(MAX_DEATHS):
                try:
                    child.send({"texts": texts})
                    reply, data = child.receive()
                except (OSError, EOFError, ValueError):
                    how = child.end()
                    if death == MAX_DEATHS - 1:
                        future.set_exception(
                            StoreError(f"embed: the tokenizer's process died {MAX_DEATHS} times: {how}")
                        )
                    child = ChildProcess("pipeline.embed.token_process", {}, self._tokenizer)
                    continue
                if "error" in reply:
                    future.set_exception(StoreError(f"embed: the tokenizer failed: {reply['error']}"))
                else:
                    self.spent["tokens"] += reply["tokens"]
                    future.set_result(np.frombuffer(data, np.int64).reshape(reply["shape"]))
                break
        child.end()


def main() -> None:
    start_lean()
    requests, replies = frames_of_parent()
    _, data = receive(requests)
    make = pickle.loads(data)  # our own parent's
    tokenise: Tokenizer | None = None
    while True:
        task, _ = receive(requests)
        start = time.process_time()
        reply: dict[str, Any]
        try:
            tokenise = tokenise or make()
            tokens = np.ascontiguousarray(tokenise(task["texts"]), np.int64)
            reply, made = {"shape": tokens.shape}, tokens.tobytes()
        except Exception as error:  # noqa: BLE001  the parent says it
            reply, made = {"error": f"{type(error).__name__}: {error}"}, b""
        send(replies, {**reply, "tokens": time.process_time() - start}, made)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):
        main()
    os._exit(0)
