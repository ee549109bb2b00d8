"""A child process of the encoder's process, spoken to in frames; it ends with its parent, whatever ends that."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from pipeline.frames import receive, send


class ChildProcess:
    """`python -m module`, given `first` and `data` as its first frame. Not safe to use from two threads."""

    def __init__(self, module: str, first: dict[str, Any], data: bytes = b"", fds: Sequence[int] = ()) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds,
            env={**os.environ, **paths, **one, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
        with contextlib.suppress(OSError):  # one that is dead already is found so by who asks it
            self.send(first, data)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: dict[str, Any], data: bytes = b"") -> None:
        """Raises OSError where the process is gone."""
        assert self._process.stdin is not None
        send(self._process.stdin, message, data)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Raises EOFError where the process is gone, ValueError for what is no frame."""
        assert self._process.stdout is not None
        return receive(self._process.stdout)

    def end(self) -> str:
        """End it, if it has not ended; returns how it did, in words."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process.stdout.close()
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"signal {-code} ({signal.Signals(-code).name})"
        return f"signal {-code}"


def frames_of_parent() -> tuple[IO[bytes], IO[bytes]]:
    """In the child: the pipes (requests, replies); what a library prints goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, replies
