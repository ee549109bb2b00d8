"""Decoding in a child process with limits, so that an image that breaks a decoder breaks nothing else.

Run as `python -m pipeline.images.sandbox` the module is that child. Both sides speak frames over pipes. The parent
unpickles nothing: a child taken over can only lie about its image.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from typing import IO, Any, Final

from pipeline.frames import receive, send
from pipeline.images.blur import parse_boxes
from pipeline.images.errors import ImageError
from pipeline.images.process import POISON, ImageProcessor, Processed
from schemas.recipe import Download

_START_SECONDS: Final = 120.0
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "TMPDIR", POISON)


class SandboxedProcessor:
    """Same call as ImageProcessor, one image at a time, each in the long-lived child that the last one left alive.

    `seconds`: CPU and wall time an image may take; `memory_bytes`: address space the child may add to what it
    starts with (default: room for the largest image that `max_pixels` admits, at least 1 GiB).
    """

    def __init__(self, settings: Download, *, seconds: float = 60.0, memory_bytes: int | None = None) -> None:
        self.settings = settings
        self.seconds = seconds
        self.memory_bytes = memory_bytes or max(1 << 30, 24 * settings.max_pixels)
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, data: bytes, boxes: object = None) -> Processed:
        """Raises ImageError, decoder_crash when the child died or was stuck; RuntimeError for a fault of ours."""
        parsed = parse_boxes(boxes)
        with self._lock:
            child = self._child or self._start()
            reply, body = self._ask(child, {"boxes": parsed}, data, self.seconds)
            if reply.get("reason") == "decoder_crash":
                self._end()  # out of memory: what is left of the child is not to be trusted
        if "bug" in reply:
            raise RuntimeError(reply["bug"])
        if "reason" in reply:
            raise ImageError(str(reply["reason"]), str(reply["detail"]))
        return Processed(data=body, **reply)

    def close(self) -> None:
        """End the child; the next call would start another."""
        with self._lock:
            self._end()

    def __enter__(self) -> "SandboxedProcessor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        child = self._child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.images.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        first = {
            "settings": self.settings.model_dump(mode="json"),
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
        }
        try:
            self._ask(child, first, b"", _START_SECONDS)
        except ImageError as error:
            lines = child.stderr.read().decode(errors="replace").strip().splitlines() if child.stderr else []
            raise RuntimeError(f"decoder child did not start ({error.detail}): {lines[-1:]}") from None
        finally:
            if child.stderr:
                child.stderr.close()
        return child

    def _ask(
        self, child: subprocess.Popen[bytes], message: dict[str, Any], data: bytes, seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        watch = threading.Timer(seconds, stop)
        watch.start()
        try:
            send(child.stdin, message, data)
            return receive(child.stdout)
        except (OSError, EOFError, ValueError):
            # ValueError: a reply that is no reply. Whatever it was, this child is done.
            code = self._end()
            detail = f"no answer in {seconds:g} s" if late.is_set() else _epitaph(code)
            raise ImageError("decoder_crash", detail) from None
        finally:
            watch.cancel()

    def _end(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._reap(child, 1.0)
        child.kill()
        return self._reap(child, None)

    @staticmethod
    def _reap(child: subprocess.Popen[bytes], seconds: float | None) -> int:
        with contextlib.suppress(OSError):
            if child.stdin is not None:
                child.stdin.close()  # end of input: the child leaves its loop
        code = child.wait(seconds)
        if child.stdout is not None:
            child.stdout.close()
        return code


def _epitaph(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"


def _limit(memory_bytes: int) -> None:
    with open("/proc/self/statm") as statm:
        in_use = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    first, _ = receive(requests)
    process = ImageProcessor(Download.model_validate(first["settings"]))
    _limit(int(first["memory_bytes"]))
    send(replies, {}, b"")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # nobody reads what decoders print from here on, and a full pipe would stop us
    os.dup2(silence, 2)
    with contextlib.suppress(EOFError):
        while True:
            message, data = receive(requests)
            used = resource.getrusage(resource.RUSAGE_SELF)
            soft = int(used.ru_utime + used.ru_stime + float(first["seconds"])) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
            reply, body = _one(process, data, message["boxes"])
            send(replies, reply, body)


def _one(process: ImageProcessor, data: bytes, boxes: object) -> tuple[dict[str, Any], bytes]:
    try:
        done = process(data, boxes)
    except ImageError as error:
        return {"reason": error.reason, "detail": error.detail}, b""
    except Exception as error:  # noqa: BLE001  becomes the row's `failed: internal` on the parent's side
        return {"bug": f"{type(error).__name__}: {error}"}, b""
    reply = {name: getattr(done, name) for name in Processed.__slots__ if name != "data"}
    return reply, done.data


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between frames
    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    _main()
