"""python -m jobs.semantic: the semantic stage alone, on what the stages before it left in ROOT."""

import sys

from jobs.build import main

if __name__ == "__main__":
    sys.exit(main(stage="semantic"))
