"""Fault points: where the tests kill, stop or fail a run.

`PAIRMILL_FAULT=point[@where]:action:FLAG` (where: a unit, a table or a stage) does the action the first time the point
is passed: FLAG is a file that is created exclusively, so it happens once whatever the processes. Actions: `kill`
(SIGKILL of this process), `stop` (SIGSTOP), `enospc` (OSError). Unset (always, outside the tests), a point costs one
look-up.
"""

import errno
import os
import signal


def fault_point(point: str, *where: str) -> None:
    wanted = os.environ.get("PAIRMILL_FAULT")
    if wanted is None:
        return
    place, action, flag = wanted.split(":", 2)
    if place not in (point, *(f"{point}@{one}" for one in where)):
        return
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
