"""Who this process is, and whether another process of this machine still lives."""

import os
import socket
from functools import cache
from pathlib import Path


@cache
def host() -> str:
    return socket.gethostname()


@cache
def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none, which equals nobody else's."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """A living process's start time in clock ticks since boot, or None if it is dead.

    A zombie is dead: it does nothing more, and its parent may never collect it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # proc(5): the second field is the program's name, which may hold spaces and brackets; state and start time
    # are the third and the twenty-second.
    fields = stat.rpartition(b") ")[2].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def this_process() -> tuple[int, str]:
    """(pid, start time) of this process."""
    return os.getpid(), started(os.getpid()) or ""
