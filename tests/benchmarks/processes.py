"""Run a command and watch its tree of processes: seconds, peak memory and CPU by role."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
Role = Callable[[bool, str], str]
"""(is it the command itself, its command line) → the name under which its memory and CPU are reported."""


@dataclass
class Ran:
    seconds: float
    code: int
    output: str
    peak_mb: dict[str, float] = field(default_factory=dict)
    """role → largest resident set that one process of it ever had."""
    tree_mb: float = 0.0
    """Largest sum over all processes at one time; shared pages count once in each."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)


def run(command: Sequence[str], role: Role, env: dict[str, str], every: float = 0.5) -> Ran:
    """Run to the end; a sample of /proc every `every` seconds, so CPU of the last half second may be missed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    watch = _Watch(process.pid, role)
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(every):
            watch.look()

    watcher = threading.Thread(target=sample)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return watch.report(Ran(seconds, process.returncode, output.decode(errors="replace")))


class _Watch:
    def __init__(self, root: int, role: Role) -> None:
        self._root = root
        self._role = role
        self._roles: dict[int, str] = {root: role(True, "")}
        self._cpu: dict[int, float] = {}
        self._peak: dict[int, float] = {}
        self._tree = 0.0

    def look(self) -> None:
        stats: dict[int, tuple[int, float, float]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (found := _stat(int(entry.name))):
                stats[int(entry.name)] = found
        grew = True
        while grew:
            new = [pid for pid, (parent, _, _) in stats.items() if parent in self._roles and pid not in self._roles]
            self._roles.update(dict.fromkeys(new, "?"))
            grew = bool(new)
        total = 0.0
        for pid in self._roles.keys() & stats.keys():
            _, cpu, resident = stats[pid]
            self._cpu[pid] = cpu
            self._peak[pid] = max(self._peak.get(pid, 0.0), resident)
            total += resident
            if pid != self._root:
                name = self._role(False, _command_line(pid))
                if name:
                    self._roles[pid] = name
        self._tree = max(self._tree, total)

    def report(self, ran: Ran) -> Ran:
        for pid, role in self._roles.items():
            ran.peak_mb[role] = max(ran.peak_mb.get(role, 0.0), self._peak.get(pid, 0.0))
            ran.cpu_s[role] = ran.cpu_s.get(role, 0.0) + self._cpu.get(pid, 0.0)
            ran.processes[role] = ran.processes.get(role, 0) + 1
        ran.tree_mb = self._tree
        return ran


def _stat(pid: int) -> tuple[int, float, float] | None:
    """(parent, CPU seconds, resident MB), or None where the process has just gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS, int(fields[21]) * PAGE / 1e6


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
