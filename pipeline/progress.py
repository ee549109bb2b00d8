"""What a long stage shows: rows done, rate, statuses, time left; live on a terminal, plain lines elsewhere."""

import logging
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.runner import Result
from pipeline.units import add_counts
from schemas.records import Counts

log = logging.getLogger(__name__)

PLAIN_EVERY_S = 10.0


class Progress:
    """A context manager; call it with each unit's result."""

    def __init__(self, stage: str, rows: int) -> None:
        self._stage = stage
        self._rows = rows
        self._done = 0
        self._told = 0
        self._counts: Counts = {}
        self._started = self._printed = time.monotonic()
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4, transient=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        if self._done != self._told:
            log.info("%s", self._line())

    def __call__(self, result: Result) -> None:
        self._done += result["rows"]
        self._counts = add_counts([self._counts, result.get("counts", {})])
        if self._live:
            self._live.update(Text(self._line()))
        elif time.monotonic() - self._printed > PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self._told = self._done
            log.info("%s", self._line())

    def _line(self) -> str:
        spent = time.monotonic() - self._started
        rate = self._done / max(spent, 0.001)
        statuses = " ".join(f"{status} {sum(reasons.values()):,}" for status, reasons in self._counts.items())
        left = max(0, self._rows - self._done) / rate if rate else 0.0
        ahead = f", {left:,.0f} s left" if left > 0.5 else ""
        return f"{self._stage}: {self._done:,} of {self._rows:,} rows, {rate:,.0f}/s, {spent:,.0f} s{ahead}: {statuses}"
