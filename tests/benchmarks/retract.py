"""jobs.retract on a made-up ROOT: whole processes, their CPU seconds and peak memory.

    python -m tests.benchmarks.retract [ROWS ...]      default: 20,000 and 200,000 rows

Units of 1,000 rows, hosts of 500 together as units are cut, images of 700 bytes, shards of 1,000. What goes: one row,
one host (500 rows in one unit), a hundredth of all rows spread over every unit, and what is not there at all.
"""

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.storage import LocalStore
from schemas.recipe import Recipe
from tests import handmade
from tests.handmade import HandmadeRoot, uid_of
from tests.pool_fixture import picture

RECIPE = Recipe.model_validate(
    {"shard": {"number_sample_per_shard": 1_000}, "dedupe": {"levels": {"bytes": True}, "scope": "image"}}
)
HOST_ROWS = 500


class Root(HandmadeRoot):
    def _pair(self, batch: str, number: int, kept: bool) -> dict[str, Any]:
        pair = super()._pair(batch, number, kept)
        host = f"host{number // HOST_ROWS}.test"
        url = pair["url"].replace(pair["url"].split("/")[2], host)
        return pair | {"url": url, "fetch_url": url, "uid": uid_of(url, pair["text"])}


@cache
def _photo() -> bytes:
    return picture(0)


def image(number: int) -> bytes:
    """A decodable image of its own bytes, in no time: what follows a JPEG's end is no part of the picture."""
    return _photo() + b"\x00" * 64 + number.to_bytes(8, "big")


def make(folder: Path, rows: int) -> tuple[str, list[str]]:
    """A finished ROOT, and the uids of its pairs."""
    handmade.picture, handmade.UNIT_ROWS = image, 1_000  # type: ignore[attr-defined]
    made = Root(LocalStore(folder), RECIPE)
    made.batch(rows)
    made.finish()
    numbers = [number for number in range(rows) if number % 10 not in (3, 5)]
    return str(folder), [made._pair("0001", number, False)["uid"] for number in numbers]


JOB = """
import sys
from jobs.retract import main
code = main(sys.argv[1:])
print(*[line for line in open("/proc/self/status") if line.startswith("VmHWM")], end="")
sys.exit(code)
"""
"""The job, and then its largest resident set: what wait4 says of it is the larger of it and its parent's."""


def withdraw(root: str, listed: list[str], scratch: Path) -> tuple[float, float, str]:
    """CPU seconds, peak MB and the receipt's lines of one `jobs.retract`."""
    (scratch / "list.txt").write_text("\n".join(listed) + "\n")
    arguments = [root, "--list", str(scratch / "list.txt"), "--why", "benchmark"]
    with (scratch / "told.txt").open("w") as told:
        process = subprocess.Popen([sys.executable, "-c", JOB, *arguments], stdout=told, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    *lines, peak = (scratch / "told.txt").read_text().splitlines()
    if process.returncode:
        raise RuntimeError("\n".join([*lines, peak]))
    return usage.ru_utime + usage.ru_stime, int(peak.split()[1]) / 1024, "\n".join(lines)


def main() -> None:
    sizes = [int(size.replace(",", "")) for size in sys.argv[1:]] or [20_000, 200_000]
    print(f"{'rows':>10} {'what goes':<28}{'CPU s':>8}{'peak MB':>9}  withdrawn")
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            root, uids = make(scratch / "root", rows)
            cases = {
                "nothing that is there": ["host:nowhere.test"],
                "one row": [f"uid:{uids[len(uids) // 2]}"],
                "one host": [f"host:host{rows // HOST_ROWS // 3}.test"],
                "a hundredth, in every unit": [f"uid:{uid}" for uid in uids[7::100]],
            }
            for name, listed in cases.items():
                seconds, peak, told = withdraw(root, listed, scratch)
                outcomes = next(
                    (line for line in told.splitlines() if line.startswith("download/") and " outcomes" in line), "-"
                )
                print(f"{rows:>10,} {name:<28}{seconds:>8.1f}{peak:>9.0f}  {outcomes.partition(': ')[2]}", flush=True)


if __name__ == "__main__":
    main()
