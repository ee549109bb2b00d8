"""python -m jobs.embed: the embed stage alone, on what the stages before it left in ROOT."""

import sys

from jobs.build import main

if __name__ == "__main__":
    sys.exit(main(stage="embed"))
