"""pairmill JOB …: the same as python -m jobs.JOB …"""

import difflib
import runpy
import sys
from importlib.resources import files

from pipeline.start import start_lean


def main() -> int:
    names = sorted(path.name.removesuffix(".py") for path in files("jobs").iterdir() if path.name.endswith(".py"))
    jobs = [name for name in names if not name.startswith("_") and name != "arguments"] + ["demo"]
    job = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if job in ("-h", "--help"):
        print(f"usage: pairmill JOB …\njobs: {', '.join(jobs)}\npairmill JOB --help says more")
        return 0
    if job not in jobs:
        near = difflib.get_close_matches(job, jobs, n=1)
        print(
            f"pairmill: {job} is no job; " + (f"did you mean {near[0]}?" if near else f"jobs: {', '.join(jobs)}"),
            file=sys.stderr,
        )
        return 2
    del sys.argv[1]
    start_lean()
    runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
