"""`make bench`: every benchmark in turn, each printing its table. Names of single ones may be given."""

import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "decode": [],
    "parts": [],
    "consent": [],
    "bodies": [],
    "ingest": [],
    "language": [],
    "dedupe": [],
    "recall": [],
    "semantic": ["--rows", "25000", "100000", "--recall", "20000"],
    "shard": [],
    "scores": [],
    "select_rules": [],
    "select_top_balance": [],
    "records": [],
    "tables": [],
    "adopt": [],
    "retract": [],
    "embed": [],
    "look": [],
    "startup": [],
    "train": [],
    "download": ["--case", "http", "bad"],
    "https": ["--case", "https", "--images", "3000"],
}


def main() -> int:
    wanted = sys.argv[1:] or list(COMMANDS)
    folder = Path(__file__).parent
    for name in wanted:
        print(f"== {name}", flush=True)
        script = folder / f"{'download' if name == 'https' else name}.py"
        subprocess.run([sys.executable, str(script), *COMMANDS[name]], check=True, cwd=folder.parent.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
