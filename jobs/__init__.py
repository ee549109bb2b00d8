"""Entry points: `python -m jobs.<name>`, or `pairmill <name>`."""

import sys

from pipeline.start import start_lean

if sys.argv[0] == "-m":  # Python is looking for the module to run: a program begins, nobody imports us
    start_lean()
